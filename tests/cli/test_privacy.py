import json
import subprocess
import sys

import pytest

from covey.privacy.accounting import GaussianLoss
from covey.privacy.ledger import encode_loss
from covey.storage.interface import PrivacyCharge
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin

from .test_federation import device_args, line_with, running, url_of

GBOARD = "tree:clip=1,noise=7,max_participation=6,min_separation=313,delta=1e-10"


def test_account_prints_epsilon_and_every_assumption(covey):
    done = covey("privacy", "account", GBOARD, "--rounds", 2000, "--cohort", 6500, "--population", 10_000_000)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "privacy: epsilon 8.526 at delta 1e-10 after 2000 rounds"
    assert [line.split(":")[0].strip() for line in lines] == [
        "adjacency", "participation", "cohort", "noise", "delta", "opened",
    ]  # fmt: skip


def test_account_solves_for_the_noise(covey):
    spec = "skellam:clip=0.03,epsilon=10"
    done = covey("privacy", "account", spec, "--rounds", 100, "--cohort", 50, "--population", 3400, "--json", "-")
    found = json.loads(done.stdout)
    assert 9.9 < found["epsilon"] <= 10 and found["noise_multiplier"] > 1 and found["assumptions"]


def test_account_of_a_ring_is_for_what_is_sent(covey):
    """An eighth of 2^20 coordinates (64 blocks of 2^14): Δ₂² = units² + 2^17 / 4 + units + sqrt(2^17) / 2."""
    spec, ring = "skellam:clip=1,noise=1", "hd|subsample:0.125|ring:20:130:clip"
    args = [
        "privacy",
        "account",
        spec,
        "--rounds",
        100,
        "--cohort",
        100,
        "--population",
        10_000,
        "--parameters",
        1 << 20,
    ]
    done = covey(*args, "--compression", ring)
    assert done.returncode == 0, done.stderr
    units = int(done.stdout.split(" integer units")[0].split()[-1])
    growth = (1 + (2**17 / 4 + units + 2**8.5 / 2) / units**2) ** 0.5 - 1
    assert f"rounding lengthens by {100 * growth:.2g} %" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gausian:clip=1,noise=1"], "did you mean gaussian"),
        (["none"], "a mechanism"),
        (["gaussian:noise=1"], "privacy_no_clip"),
        (["gaussian:clip=1,noise=1,delta=0.5"], "privacy_delta"),
        (["gaussian:clip=1,noise=1", "--parameters", 0], "at least 1"),
        (["gaussian:clip=1,noise=1", "--cohort", 101], "at most the population"),
        (["skellam:clip=1,noise=1", "--compression", "hd|eden:1"], "compression_spec"),
        (["skellam:clip=1,noise=1", "--compression", "hd|ring:12:26:clip"], "privacy_noise"),
    ],
)
def test_what_cannot_be_is_refused(covey, arguments, message):
    done = covey("privacy", "account", "--rounds", 10, "--cohort", 20, "--population", 100, *arguments)
    assert done.returncode in (1, 2) and message in done.stderr and done.stdout == ""


def test_ledger_shows_what_was_spent(covey, tmp_path):
    storage = SqliteStorage(tmp_path)
    begin(storage)
    for number in (1, 2):
        charge = PrivacyCharge("ab" * 32, number, 0, f"a{number}", encode_loss(GaussianLoss(2.0)))
        storage.charge_privacy("p", [charge], lambda spent: None)
    storage.close()
    done = covey("privacy", "ledger", tmp_path, "p", "--delta", 1e-5)
    assert done.returncode == 0, done.stderr
    assert "abababababab" in done.stdout and "2 charges; epsilon" in done.stdout
    assert "not_found" in covey("privacy", "ledger", tmp_path, "q").stderr
    assert "server.db" in covey("privacy", "ledger", tmp_path.parent, "p").stderr


def test_simulate_prints_the_promise_before_the_rounds_and_after(covey, tiny):
    done = covey("simulate", tiny, "--rounds", 2, "--workers", 1, "--privacy", "gaussian:clip=1,noise=1")
    assert done.returncode == 0, done.stderr
    first, *_, last, _ = done.stdout.splitlines()
    assert first == last and first.startswith("privacy: epsilon ") and first.endswith("the noise was seeded")
    assert "participation: a device may be in every one of the 2 rounds" in done.stdout


def test_a_plan_is_built_with_a_promise(covey, tiny, tmp_path):
    plan = tmp_path / "tiny.covey"
    build = ["plan", "build", tiny, "-o", plan, "--min-cohort", 4, "--n-max", 20, "--privacy"]
    done = covey(*build, "gaussian:clip=1,noise=1,budget=9", "--rounds", 5, "--devices", 200)
    assert done.returncode == 0, done.stderr
    assert "not private" not in done.stdout and "privacy: epsilon" in done.stdout
    shown = covey("plan", "inspect", plan).stdout
    assert "gaussian, sigma 1 x clip" in shown and "budget epsilon 9" in shown
    assert covey("plan", "check", plan).returncode == 0
    assert "--rounds R and --devices N" in covey(*build, "gaussian:clip=1,noise=1").stderr


def test_noise_and_a_ring_compose_where_they_are_typed(covey, tiny, tmp_path):
    both = ["--compression", "hd|subsample:0.5|ring:24:26:clip:8", "--privacy", "discrete-gaussian:clip=1,noise=1"]
    build = ["plan", "build", tiny, "-o", tmp_path / "plan", "--secure", "--cohort", 20, "--min-cohort", 10]
    done = covey(*build, *both, "--rounds", 5, "--devices", 200)
    assert done.returncode == 0 and "mode secure" in done.stdout, done.stderr
    shown = covey("plan", "inspect", tmp_path / "plan").stdout
    assert "15 values by hd|subsample:0.5|ring:24:26:clip:8" in shown and "modulo 2^24" in shown
    assert covey("plan", "check", tmp_path / "plan").returncode == 0
    simulated = covey("simulate", tiny, "--rounds", 1, "--workers", 1, *both)
    assert simulated.returncode == 0 and "ring:24:26:clip:8" in simulated.stdout, simulated.stderr
    alone = covey(*build, *both[:2])
    assert alone.returncode == 2 and "compression_spec" in alone.stderr and "--privacy" in alone.stderr
    eden = covey(*build, "--compression", "hd|eden:2", *both[2:], "--rounds", 5, "--devices", 200)
    assert eden.returncode == 2 and "compression_spec" in eden.stderr and "ring:B:N:clip" in eden.stderr


def test_a_federation_over_https_keeps_a_promise(covey, tiny, tmp_path):
    """Central noise, end to end: init, serve, devices with a floor; charged rounds; a budget that stops them."""
    promise = "gaussian:clip=adaptive,start=1,noise=2,budget=3.2,delta=1e-4"
    made = covey(
        "init", tmp_path / "fed", "--recipe", tiny, "--plain", "--cohort", 2, "--min-cohort", 1, "--port", 0, "--host",
        "localhost", "--rounds", 9, "--devices", 1000, "--privacy", promise,
    )  # fmt: skip
    assert made.returncode == 0 and "privacy: epsilon" in made.stdout, made.stderr
    for i in range(2):
        covey("device", "fill", "--home", tmp_path / f"home-{i}", "--recipe", tiny, "--client", i + 4)
    with running("serve", "--dir", tmp_path / "fed/server") as server:
        args = device_args(tmp_path, url_of(line_with(server, "serving")), "home-0", "home-1")
        refused = covey(*args, "--once", "--min-noise", 2.5)
        assert refused.returncode == 1 and "plan_refused" in refused.stderr
        with running(*args, "--min-noise", 2):
            lines = [line_with(server, "round 1 committed")]
            while "privacy_budget" not in lines[-1]:
                lines.append(server.stdout.readline())
                assert lines[-1], server.stderr.read()
    shown = covey("privacy", "ledger", tmp_path / "fed/server/data", "blobs", "--delta", 1e-4)
    committed = sum("committed" in line for line in lines)
    assert f"{2 * committed} charges; epsilon" in shown.stdout  # the model and the clip's count
    assert 2 < float(shown.stdout.split("epsilon ")[-1].split()[0]) <= 3.2
    with running("serve", "--dir", tmp_path / "fed/server") as again:  # other tasks may be served; this one is not
        assert f"round {committed}" in line_with(again, "serving")
        assert "'train' is paused: privacy_budget" in again.stdout.readline()
    unchanged = covey("privacy", "ledger", tmp_path / "fed/server/data", "blobs", "--delta", 1e-4)
    assert unchanged.stdout == shown.stdout


@pytest.mark.parametrize("compression", [[], ["--compression", "hd|subsample:0.5|ring:20:4:clip:8"]])
def test_noise_of_devices_in_a_secure_sum(covey, tiny, tmp_path, compression):
    """Distributed noise as it is meant: added before masking, opened in a group's sum only, charged before that."""
    made = covey(
        "init", tmp_path / "fed", "--recipe", tiny, "--cohort", 3, "--min-cohort", 3, "--port", 0, "--host",
        "localhost", "--rounds", 2, "--devices", 1000, "--privacy", "skellam:clip=1,noise=1,delta=1e-4", *compression,
    )  # fmt: skip
    assert made.returncode == 0 and "each device adds" in made.stdout and "secure aggregation" in made.stdout
    homes = [f"home-{i}" for i in range(3)]
    for i, home in enumerate(homes):
        covey("device", "fill", "--home", tmp_path / home, "--recipe", tiny, "--client", i + 4)
    with running("serve", "--dir", tmp_path / "fed/server") as server:
        args = device_args(tmp_path, url_of(line_with(server, "serving")), *homes)
        args = [a for a in args if a != "--accept-plain"]
        args[args.index("--min-cohort") + 1] = "3"
        with running(*args, "--min-noise", 1):
            line_with(server, "round 2 committed")
    shown = covey("privacy", "ledger", tmp_path / "fed/server/data", "blobs", "--delta", 1e-4)
    assert "2 charges; epsilon" in shown.stdout


def test_without_the_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['dp_accounting'] = None; from covey.cli.main import main; main()"
    arguments = ["privacy", "account", GBOARD, "--rounds", "2000", "--cohort", "65", "--population", "1000000"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'covey[privacy]'" in done.stderr
