"""What the page on admission says is true: its examples run, its defaults are the defaults, its codes exist."""

import re
import tomllib
from pathlib import Path

import msgspec

from covey.admission.limits import Limits
from covey.types.errors import all_errors

PAGE = (Path(__file__).parents[2] / "docs" / "admission.md").read_text()


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "docs/admission.md", "exec"), {})


def test_the_defaults_are_the_defaults():
    (table,) = (t for t in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if t.startswith("[limits]"))
    shown = tomllib.loads(table)["limits"]
    assert shown == msgspec.structs.asdict(Limits())
    assert msgspec.convert(shown, Limits) == Limits()


def test_the_codes_exist():
    named = set(re.findall(r"\| [^|\n]*?`(\w+)` \(\d+\)", PAGE)) | {"secagg_counter", "rate_limited", "busy"}
    assert named >= {"too_slow", "content_encoding", "unauthorized"} and named <= set(all_errors())
