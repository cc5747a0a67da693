"""``--download SPEC`` in every command that makes a plan, and in a federation of processes under masks."""

import json

from covey.compression.checkpoint import download_num_bytes
from covey.plans.plan import unpack_plan

from .test_federation import device_args, line_with, running, url_of


def test_simulate_counts_encoded_checkpoints(covey, tiny, tmp_path):
    found = {}
    for spec in ("float32", "quantize:8"):
        out = tmp_path / spec
        done = covey("simulate", tiny, "--rounds", 2, "--workers", 1, "--download", spec, "--json", "-", "--out", out)
        assert done.returncode == 0, done.stderr
        found[spec] = json.loads(done.stdout)
    manifest = unpack_plan((tmp_path / "quantize:8" / "plan.covey").read_bytes()).manifest
    assert found["quantize:8"]["settings"]["download"] == "quantize:8"
    for spec, report in found.items():
        assert report["traffic"]["down: checkpoint"] == 2 * 5 * download_num_bytes(spec, manifest.params)
    assert found["float32"]["checkpoint"] != found["quantize:8"]["checkpoint"]


def test_plan_build_inspect_and_check_know_the_spec(covey, tiny, tmp_path):
    plan = tmp_path / "tiny.covey"
    build = ("plan", "build", tiny, "-o", plan)
    done = covey(*build, "--download", "quantize:8", "--checkpoint", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first").stat().st_size == 4 * 15  # a server begins from the exact model
    assert "checkpoints by quantize:8, 55 B" in covey("plan", "inspect", plan).stdout
    assert "canonical, schema 4" in covey("plan", "check", plan).stdout
    refused = covey(*build, "--download", "hd|eden:2")
    assert refused.returncode == 2 and "compression_spec" in refused.stderr and "quantize:B" in refused.stderr


def test_a_federation_under_masks_whose_devices_download_encoded_checkpoints(covey, tiny, tmp_path):
    """A secure sum is bound to the blob that every device was offered: were it another for one, none would open."""
    made = covey(
        "init", tmp_path / "fed", "--recipe", tiny, "--cohort", 3, "--min-cohort", 3, "--port", 0, "--host",
        "localhost", "--rounds", 2, "--download", "quantize:4",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    homes = [f"home-{i}" for i in range(3)]
    for i, home in enumerate(homes):
        covey("device", "fill", "--home", tmp_path / home, "--recipe", tiny, "--client", i + 4)
    with running("serve", "--dir", tmp_path / "fed/server") as server:
        args = device_args(tmp_path, url_of(line_with(server, "serving")), *homes)
        args = [a for a in args if a != "--accept-plain"]
        args[args.index("--min-cohort") + 1] = "3"
        with running(*args):
            line_with(server, "round 2 committed")
