"""The privacy ledger in SQLite: old directories gain it, nothing is refunded, a crash leaves all or none."""

import signal
import sqlite3
import subprocess
import sys

import pytest

from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin, charge_of
from covey.types.errors import StorageError


@pytest.mark.parametrize("statement", ["DELETE FROM privacy_charge", "UPDATE privacy_charge SET times = times - 1"])
def test_nothing_is_refunded_even_by_hand(tmp_path, statement):
    storage = SqliteStorage(tmp_path)
    begin(storage)
    storage.charge_privacy("p", [charge_of(1, times=2)], lambda spent: None)
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        storage._db.execute(statement)
    assert storage.privacy_charges("p") == (charge_of(1, times=2),)
    with pytest.raises(StorageError):
        storage.charge_privacy("p", [charge_of(2), charge_of(3, times=0)], lambda spent: None)
    assert storage.privacy_charges("p") == (charge_of(1, times=2),)
    storage.close()


CHARGING = """
import sys
from pathlib import Path
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin, charge_of
storage = SqliteStorage(Path(sys.argv[1]))
begin(storage)
number = 0
while True:
    number += 1
    storage.charge_privacy("p", [charge_of(number, b"a"), charge_of(number, b"b")], lambda spent: None)
    print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_was_charged_before_a_kill_stays_charged(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CHARGING, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = 5 + len(child.stdout.read().split())
    storage = SqliteStorage(tmp_path)
    spent = storage.privacy_spent("p")
    assert spent[b"a"] == spent[b"b"] >= told
    storage.close()
