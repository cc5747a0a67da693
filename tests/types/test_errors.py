import pickle
import re
from pathlib import Path

import pytest

from covey.types import errors
from covey.types.errors import CoveyError, UsageError, all_errors

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"


def test_codes_are_unique_and_stable_words():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, CoveyError)]
    codes = [k.code for k in kinds]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", c) for c in codes)
    assert set(all_errors()) >= set(codes) - {"error"}


def test_every_code_has_a_section_and_every_section_a_code():
    sections = set(re.findall(r"^## `(\w+)`$", DOCS.read_text(), re.MULTILINE))
    assert sections == {k.code for k in all_errors().values()}


def test_the_tree_in_the_docstring_names_every_error():
    for kind in all_errors().values():
        assert re.search(rf"\b{kind.__name__}\b", errors.__doc__ or ""), kind


@pytest.mark.parametrize("kind", list(all_errors().values()), ids=lambda k: k.__name__)
def test_an_error_survives_the_way_to_another_process(kind):
    error = kind("here", expected="a", got="b", hint="do c")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.where, back.expected, back.got, back.hint) == ("here", "a", "b", "do c")
    assert str(back) == "here: expected a, got b"


def test_only_usage_exits_with_two():
    assert UsageError.exit_code == 2
    assert {k.exit_code for k in all_errors().values() if not issubclass(k, UsageError)} == {1}
