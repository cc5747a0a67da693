"""Attestations from a file: the next line each time, and what the application puts there meanwhile."""

import io
from pathlib import Path

import pytest

from covey.device.tokens import AttestationFile
from covey.types.errors import UsageError


def test_one_line_after_the_other_and_the_last_one_stays(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("a\n\n  b  \n")
    give = AttestationFile(path)
    assert [give(), give(), give()] == ["a", "b", "b"]
    path.write_text("c\n")  # the application has renewed it
    assert [give(), give()] == ["c", "c"]
    path.write_text("\n")
    with pytest.raises(UsageError, match="expected a token on a line, got none"):
        give()


def test_stdin_is_read_once(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("x\ny\n"))
    give = AttestationFile(Path("-"))
    assert [give(), give(), give()] == ["x", "y", "y"]


def test_nothing_there(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="expected a readable text file"):
            AttestationFile(path)
    (tmp_path / "empty").write_text("")
    with pytest.raises(UsageError, match="expected a token on a line"):
        AttestationFile(tmp_path / "empty")
