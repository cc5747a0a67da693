"""The page for applications is true: its code runs, from top to bottom, without a network."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "applications.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "applications.md", "exec"), {})


def test_the_owners_commands_exist():
    from click.testing import CliRunner

    from covey.cli.main import cli

    shown = re.findall(r"^    covey (device \w+)(.*?)(?:#|$)", (DOCS / "owner.md").read_text(), re.MULTILINE)
    assert len(shown) == 6
    for words, rest in shown:
        out = CliRunner().invoke(cli, [*words.split(), "--help"]).output
        for option in re.findall(r"--[a-z]+", rest):
            assert option in out, (words, option)
    forget = CliRunner().invoke(cli, ["device", "forget", "--help"]).output
    for option in ("--examples", "--collection", "--population", "--everything"):
        assert option in forget
