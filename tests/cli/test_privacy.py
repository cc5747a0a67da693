import json

import pytest

from covey.privacy.accounting import GaussianLoss
from covey.privacy.ledger import encode_loss
from covey.storage.interface import PrivacyCharge
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin

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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gausian:clip=1,noise=1"], "did you mean gaussian"),
        (["none"], "a mechanism"),
        (["gaussian:noise=1"], "privacy_no_clip"),
        (["gaussian:clip=1,noise=1,delta=0.5"], "privacy_delta"),
        (["gaussian:clip=1,noise=1", "--parameters", 0], "at least 1"),
        (["gaussian:clip=1,noise=1", "--cohort", 101], "at most the population"),
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
