"""The server's page explains every key of the configuration with its default, and every transition of a task."""

import re
from pathlib import Path

import pytest

from covey.admission.limits import Limits
from covey.server.config import PaceConfig, RoundConfig, ServerConfig
from covey.server.tasks import _LEGAL, Action, TaskState

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
TABLES = {"round", "pace", "release", "limits"}
KEYS = [(kind, name) for kind in (ServerConfig, RoundConfig, PaceConfig, Limits) for name in kind.__struct_fields__]


def row(key):
    found = re.findall(rf"^\| `{key}` \|(.*?)\| (.*) \|$", PAGE, re.M)
    assert len(found) == 1, f"docs/server.md has {len(found)} rows for {key}"
    default, meaning = found[0]
    return default.strip(), meaning


@pytest.mark.parametrize(("kind", "name"), KEYS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_key_of_the_configuration_is_explained_with_its_default(kind, name):
    default, meaning = row(name)
    assert len(meaning) > 10
    if name in TABLES or name == "population":
        assert default == ""
        return
    value = getattr(kind(population="p") if kind is ServerConfig else kind(), name)
    shown = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    assert default == shown


def test_the_page_names_no_key_that_is_not_there():
    known = {name for _, name in KEYS}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == known


@pytest.mark.parametrize("state", list(TaskState), ids=lambda s: s.value)
def test_the_table_of_transitions_is_the_servers(state):
    (cells,) = re.findall(rf"^\| {state.value} \|(.*)\|$", PAGE, re.M)
    actions = (Action.PAUSE, Action.RESUME, Action.CANCEL, Action.ROLL_BACK)
    for action, cell in zip(actions, cells.split("|"), strict=False):
        wanted = _LEGAL.get((state, action))
        assert cell.strip() == (wanted.value if wanted else ""), action
