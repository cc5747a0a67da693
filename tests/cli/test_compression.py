import json

import pytest


def test_try_shows_bytes_error_and_time(covey, tiny):
    done = covey("compression", "try", "float32", "hd|eden:2", "mask:0.5|quantize:8", "--on", tiny, "--json", "-")
    assert done.returncode == 0, done.stderr
    exact, eden, mask = json.loads(done.stdout)
    # 15 parameters: 60 bytes, beside frame (8 + 8 + 4), names (4 + 11) and a header of 6 float64.
    assert exact["error"] == 0 and exact["body_bytes"] == exact["float32_bytes"]
    assert eden["spec"] == "hd|eden:2" and 0 < eden["error"] < 1 and eden["body_bytes"] < exact["body_bytes"]
    assert mask["error"] < 1e-4, "what was trained under the mask is all there is"
    assert exact["unbiased"] and not eden["unbiased"]


def test_try_prints_a_table(covey, tiny):
    done = covey("compression", "try", "hd|quantize:2", "--on", tiny, "--devices", 2)
    assert done.returncode == 0, done.stderr
    assert "hd|quantize:2" in done.stdout and "fewer" in done.stdout and "2 devices" in done.stdout


def test_ring_says_why(covey, tiny):
    done = covey("compression", "ring", "--on", tiny, "--n-max", 20)
    assert done.returncode == 0, done.stderr
    assert "within the budget" in done.stdout and "20 devices x" in done.stdout
    spec = done.stdout.split("spec: ")[1].strip()
    again = covey("compression", "try", spec, "--on", tiny, "--json", "-")
    (result,) = json.loads(again.stdout)
    assert result["composes_with_secagg"] and result["spec"] == spec


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("try", "hd|edn:2"), "did you mean eden"),
        (("try", "float32", "--devices", "99"), "1 to 12"),
        (("ring", "--n-max", "0"), "N >= 1"),
    ],
)
def test_what_is_typed_wrong_is_named(covey, tiny, args, words):
    done = covey("compression", *args, "--on", tiny)
    assert done.returncode == 2 and words in done.stderr
