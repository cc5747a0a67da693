"""The example applications: they store, suggest and end, without any network, as on a train."""

import subprocess
import sys
from pathlib import Path

import pytest
from device.release_server import ReleaseServer
from device.world import OWNER

from covey.data.shakespeare import lines_as_windows
from covey.device.examples import ExampleStore
from covey.device.personal import PersonalModel
from covey.plans.manifest import PrivacyTerms
from covey.plans.signing import public_key_pem
from covey.recipes.keyboard import CONTEXT, EXAMPLES
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe
from covey.server.authority import ensure_authority

EXAMPLE_FILES = Path(__file__).parents[1] / "examples"
LINES = ["to be or not to", "the rest is sil"]


@pytest.fixture(scope="module")
def keyboard(tmp_path_factory):
    """Return the keyboard's plan and its first parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        recipe = load_recipe("keyboard")
        terms = PrivacyTerms(min_cohort=3)
        return prepare(recipe, "keyboard", recipe.settings, terms, recipe.data(recipe.settings, 0))


@pytest.fixture
def files(tmp_path, keyboard):
    """Return where the owner's key, an authority and a device with a release are."""
    (tmp_path / "owner.pub").write_bytes(public_key_pem(OWNER.public_key()))
    ensure_authority(tmp_path / "authority")
    ca = tmp_path / "authority" / "ca.pem"
    home = tmp_path / "home"
    home.mkdir()
    server = ReleaseServer()
    release = {"population": "keyboard", "plan_bytes": keyboard.plan_bytes, "expires_at": 1 << 40}
    server.publish(1, keyboard.checkpoint, **release)
    assert PersonalModel(home, OWNER.public_key(), "keyboard").refresh(server)
    return tmp_path / "owner.pub", ca, home


def run(name, *args):
    command = [sys.executable, EXAMPLE_FILES / name, *map(str, args)]
    text = "".join(f"{line}\n" for line in LINES)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(home):
    with ExampleStore.of_home(home) as store:
        return store.count("typed")


NUM_EXAMPLES = len(lines_as_windows(LINES, CONTEXT)["y"])


def test_an_application_joins_in_under_25_lines(files):
    owner, ca, home = files
    code = (EXAMPLE_FILES / "join.py").read_text().splitlines()
    assert len(code) < 25
    out = run("join.py", "https://127.0.0.1:9", owner, ca, home)
    assert len(out.splitlines()) == len(LINES) and all(line.startswith("[") for line in out.splitlines())
    assert stored(home) == NUM_EXAMPLES
    assert EXAMPLES.query.collection == "typed"


def test_the_terminal_keyboard_answers_in_a_pipe(files):
    owner, ca, home = files
    flags = ["--server", "https://127.0.0.1:9", "--owner-key", owner, "--ca", ca, "--home", home, "--min-cohort", "3"]
    out = run("terminal_keyboard.py", *flags)
    assert len(out.splitlines()) == len(LINES)
    assert stored(home) == NUM_EXAMPLES


def test_without_a_release_there_is_nothing_to_suggest(files, tmp_path):
    owner, ca, _ = files
    flags = ["--server", "https://127.0.0.1:9", "--owner-key", owner, "--ca", ca, "--home", tmp_path / "new"]
    assert run("terminal_keyboard.py", *flags) == "-\n-\n"
