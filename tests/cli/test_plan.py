import pytest

from covey.plans.signing import generate_owner_key, private_key_pem, public_key_pem


@pytest.fixture
def keys(tmp_path):
    key = generate_owner_key()
    (tmp_path / "owner.key").write_bytes(private_key_pem(key))
    (tmp_path / "owner.pub").write_bytes(public_key_pem(key.public_key()))
    (tmp_path / "other.pub").write_bytes(public_key_pem(generate_owner_key().public_key()))
    return tmp_path


@pytest.fixture
def plan(covey, tiny, keys):
    path = keys / "tiny.covey"
    done = covey("plan", "build", tiny, "-o", path, "--sign-with", keys / "owner.key", "--population", "p", "--checkpoint", keys / "first")  # fmt: skip  # noqa: E501
    assert done.returncode == 0, done.stderr
    return path


def test_a_plan_is_built_inspected_and_checked(covey, plan, keys):
    shown = covey("plan", "inspect", plan).stdout
    for word in ("blobs", "fedavg", "15 in 2 tensors", "train", "Scan", "mode plain, at least 100"):
        assert word in shown
    checked = covey("plan", "check", plan, "--owner-key", keys / "owner.pub", "--population", "p")
    assert checked.returncode == 0 and "signature: good" in checked.stdout
    assert (keys / "first").stat().st_size == 15 * 4


@pytest.mark.parametrize(
    ("owner", "population", "code"),
    [("other.pub", "p", 1), ("owner.pub", "another", 1), ("owner.key", "p", 2)],
)
def test_a_foreign_signature_is_refused(covey, plan, keys, owner, population, code):
    done = covey("plan", "check", plan, "--owner-key", keys / owner, "--population", population)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "expected" in done.stderr


def test_a_changed_byte_is_found_anywhere(covey, plan, keys):
    data = bytearray(plan.read_bytes())
    for place in (3, len(data) // 2, len(data) - 3):
        changed = bytearray(data)
        changed[place] ^= 1
        (keys / "changed").write_bytes(changed)
        done = covey("plan", "check", keys / "changed")
        assert done.returncode == 1, place
        assert "plan_" in done.stderr


def test_diff_names_what_differs(covey, tiny, plan, keys):
    assert covey("plan", "diff", plan, plan).stdout == "identical\n"
    covey("plan", "build", tiny, "-o", keys / "other", "--epochs", 3)
    done = covey("plan", "diff", plan, keys / "other")
    assert done.returncode == 1
    assert any(line.split() == ["phases[0].epochs", "1", "3"] for line in done.stdout.splitlines())


def test_a_plan_for_secure_aggregation_shows_its_groups(covey, tiny, keys):
    path = keys / "secure.covey"
    build = ["plan", "build", tiny, "-o", path, "--secure", "--cohort", 20, "--min-cohort", 10]
    done = covey(*build, "--compression", "hd|ring:12:26:50")
    assert done.returncode == 0 and "mode secure" in done.stdout, done.stderr
    shown = covey("plan", "inspect", path).stdout
    assert "groups of up to 26 devices, opened over at least 10 or not at all" in shown and "modulo 2^12" in shown
    assert covey("plan", "check", path).returncode == 0
    few = covey("plan", "build", tiny, "-o", path, "--secure", "--min-cohort", 2)
    assert few.returncode == 2 and "would learn the other's update" in few.stderr
