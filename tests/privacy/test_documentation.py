"""docs/privacy.md knows every key and mechanism, and its commands are read as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from covey.cli.main import cli
from covey.privacy.mechanism import KINDS
from covey.privacy.spec import KEYS, parse_spec

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("covey ")]


def test_every_key_and_kind_is_explained():
    for key in {k for keys in KEYS.values() for k in keys}:
        assert re.search(rf"^\|[^|]*`{key}`", PAGE, re.MULTILINE), key
    for kind in KINDS:
        assert f"**`{kind}`**" in PAGE


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_read_as_they_stand(line):
    words = shlex.split(line)[1:]
    command = cli
    context = None
    while hasattr(command, "get_command"):
        context = command.make_context(words[0], list(words[1:]), resilient_parsing=True)
        command = command.get_command(context, words.pop(0))
    if "ledger" not in line:  # whose directory has to exist
        command.make_context("covey", list(words))
    for spec in re.findall(r"(?:gaussian|skellam|tree):\S+", line):
        parse_spec(spec)


def test_there_are_commands():
    assert len(COMMANDS) == 5
