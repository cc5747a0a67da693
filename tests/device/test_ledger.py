"""The ledger: synced, chained, repaired visibly, safe between processes and under kill -9."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.device import ledger as module
from covey.device.files import quarantined
from covey.device.ledger import KINDS, Ledger, LedgerEntry
from covey.types.errors import LedgerBrokenError, StorageFullError, UsageError


def entry(n=0, **fields):
    base = {"at_s": 1000.0 + n, "kind": "sending", "population": "p", "round": n, "bytes_up": 10 * n, "epsilon": 2.5}
    return LedgerEntry(**{**base, **fields})


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.jsonl")
    for n in range(5):
        assert made.append(entry(n)) == n + 1
    return made


def kinds(ledger):
    return [e.kind for e in ledger.entries()]


def test_entries_come_back_as_they_were(ledger):
    assert list(ledger.entries()) == [entry(n) for n in range(5)]
    assert list(ledger.entries(newest=2)) == [entry(3), entry(4)]
    assert list(ledger.entries(newest=0)) == []
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_ledger_that_was_never_written_is_empty_and_makes_no_file(tmp_path):
    empty = Ledger(tmp_path / "ledger.jsonl")
    assert list(empty.entries()) == [] and empty.verify().num_entries == 0
    assert list(tmp_path.iterdir()) == []


def test_the_chain_is_sha256_of_the_hash_before_and_the_canonical_entry(ledger):
    digest = hashlib.sha256(b"covey device ledger v1").digest()
    for line in ledger.path.read_bytes().splitlines():
        stored = json.loads(line)
        canonical = json.dumps(stored["entry"], sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(digest + canonical).digest()
        assert stored["hash"] == digest.hex()
    assert ledger.verify().head == digest.hex()
    assert ledger.verify().num_entries == 5


def test_a_kind_that_nobody_knows_is_refused(ledger):
    with pytest.raises(UsageError, match="expected one of session_started"):
        ledger.append(entry(kind="uploaded"))
    assert ledger.verify().num_entries == 5
    assert len(set(KINDS)) == len(KINDS)


LINE_3 = "ledger.jsonl: line 3: expected an entry that continues the chain"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"bytes_up":20', b'"bytes_up":10'), *lines[3:]], LINE_3),
        (lambda lines: lines[:2] + lines[3:], LINE_3),
        (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], LINE_3),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], LINE_3),
        (lambda lines: [*lines[:2], b"\x00" * 40 + b"\n", *lines[3:]], LINE_3),
        (lambda lines: lines[1:], "ledger.jsonl: line 1: expected"),
        (lambda lines: [*lines, b"something else"], "ledger.jsonl: line 6: expected"),
    ],
    ids=["changed", "dropped", "swapped", "repeated", "zeros", "beginning cut off", "another program's words"],
)
@pytest.mark.parametrize("reopen", [False, True])
def test_an_edited_ledger_is_found_and_moved_aside_and_a_new_chain_says_so(ledger, edit, message, reopen):
    edited = b"".join(edit(ledger.path.read_bytes().splitlines(keepends=True)))
    ledger.path.write_bytes(edited)
    if reopen:
        ledger = Ledger(ledger.path)
    with pytest.raises(LedgerBrokenError, match=message):
        ledger.verify()
    assert ledger.path.read_bytes() == edited  # looking changes nothing
    assert ledger.append(entry(9)) == 2
    assert kinds(ledger) == ["quarantined", "sending"]
    assert ledger.verify().num_entries == 2
    (first, _) = ledger.entries()
    (aside,) = quarantined(ledger.path)
    assert aside.name == "ledger.jsonl.broken-1" and aside.name in first.reason and "line" in first.reason
    assert aside.read_bytes() == edited
    assert list(Ledger(aside).entries())  # what can be read of it still can


def test_every_broken_predecessor_is_kept(ledger):
    for n in (1, 2):
        ledger.path.write_bytes(b"broken\n")
        ledger.append(entry(n))
    assert [p.name for p in quarantined(ledger.path)] == ["ledger.jsonl.broken-1", "ledger.jsonl.broken-2"]


@given(st.data())
def test_a_cut_anywhere_is_repaired_visibly_and_costs_only_the_last_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "ledger.jsonl"
    for n in range(3):
        Ledger(path).append(entry(n))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    torn = cut - (whole[:cut].rfind(b"\n") + 1)
    chain = Ledger(path).verify()
    assert (chain.num_entries, chain.torn_bytes) == (left, torn)
    assert list(Ledger(path).entries()) == [entry(n) for n in range(left)]
    Ledger(path).append(entry(7))
    after = list(Ledger(path).entries())
    assert after[:left] == [entry(n) for n in range(left)] and after[-1] == entry(7)
    assert [e.kind for e in after[left:]] == (["repaired", "sending"] if torn else ["sending"])
    assert not torn or f"{torn} bytes" in after[left].reason
    assert Ledger(path).verify().torn_bytes == 0 and quarantined(path) == []


def test_a_hole_that_a_power_cut_left_is_repaired(ledger):
    with ledger.path.open("ab") as file:
        file.write(bytes(100))
    assert ledger.verify().torn_bytes == 100
    ledger.append(entry(5))
    assert kinds(ledger)[5:] == ["repaired", "sending"] and quarantined(ledger.path) == []


@pytest.mark.parametrize("position", [1, 40, 200])
def test_a_flipped_bit_is_found(ledger, position):
    data = bytearray(ledger.path.read_bytes())
    data[position] ^= 4
    ledger.path.write_bytes(bytes(data))
    with pytest.raises(LedgerBrokenError):
        ledger.verify()


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    before = ledger.path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StorageFullError, match=r"ledger ledger\.jsonl: expected room"):
        ledger.append(entry(6))
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before
    assert ledger.append(entry(6)) == 6
    assert ledger.verify().num_entries == 6


def test_threads_share_a_ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    threads = [threading.Thread(target=lambda: [ledger.append(entry(n)) for n in range(10)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert ledger.verify().num_entries == 40


WRITER = """
import sys
from pathlib import Path
from covey.device.ledger import Ledger, LedgerEntry
ledger = Ledger(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    ledger.append(LedgerEntry(at_s=0.0, kind="sending", population=sys.argv[2], round=n))
    print(n, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE)


def test_two_processes_append_to_one_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    processes = [writer(path, name, 60) for name in "ab"]
    for p in processes:
        p.communicate(timeout=60)
        assert p.returncode == 0
    assert Ledger(path).verify().num_entries == 120
    entries = list(Ledger(path).entries())
    for name in "ab":
        assert [e.round for e in entries if e.population == name] == list(range(60))


def test_kill_9_loses_no_entry_that_was_acknowledged(tmp_path):
    path = tmp_path / "ledger.jsonl"
    process = writer(path, "a", 10**6)
    said = [process.stdout.readline() for _ in range(15)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = len(said + process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    ledger = Ledger(path)
    assert ledger.append(entry(population="b")) >= acknowledged + 1
    rounds = [e.round for e in ledger.entries() if e.population == "a"]
    assert rounds == list(range(len(rounds))) and acknowledged <= len(rounds) <= acknowledged + 1
    ledger.verify()


def test_another_process_may_begin_a_new_chain_in_between(ledger):
    ledger.path.write_bytes(b"broken\n")
    Ledger(ledger.path).append(entry(1))
    assert ledger.append(entry(2)) == 3
    assert ledger.verify().num_entries == 3 and len(quarantined(ledger.path)) == 1
