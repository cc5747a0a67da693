"""``covey device ledger|status|pause|resume|refuse|accept|forget|page``, as a person types them."""

import io
import json
import signal
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from covey.cli.main import main
from covey.device.choices import Choices
from covey.device.examples import ExampleStore
from covey.device.ledger import Ledger, LedgerEntry
from covey.plans.manifest import ExampleSchema, FieldSpec, Query

SCHEMA = ExampleSchema(fields=(FieldSpec(name="n", dtype="int32"),), query=Query(collection="typed"))


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    with ExampleStore.of_home(path) as store:
        store.add_many("typed", {"n": np.arange(30, dtype=np.int32)}, SCHEMA)
    facts = {
        "population": "keyboard", "task": "next", "session": "s1", "round": 3, "plan": "ab" * 32, "mode": "secure",
        "summary": "next: fedavg, 1 pass", "min_cohort": 50, "epsilon": 4.0, "num_examples": 30, "bytes_down": 149_000,
        "bytes_up": 151_000, "body_sha256": "cd" * 32,
    }  # fmt: skip
    for kind in ("session_started", "sending", "counted"):
        Ledger.of_home(path).append(LedgerEntry(at_s=1e9, kind=kind, **facts))
    return path


@pytest.fixture
def device(home, capsys, monkeypatch):
    """Return a function that runs a command on ``home``, in this process: there are many of them."""

    def run(name, *args, stdin="", at=home):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(["device", name, "--home", str(at), *map(str, args)])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=out, stderr=err)

    return run


def test_the_ledger_is_readable(device):
    out = device("ledger").stdout
    for words in ("keyboard/next, round 3", "next: fedavg, 1 pass", "149.0 kB, 151.0 kB", "at least 50 devices",
                  "epsilon 4", "counted"):  # fmt: skip
        assert words in out, words
    assert out.count("round 3") == 1


def test_the_ledger_as_json_and_verified(device, home):
    entries = [json.loads(line) for line in device("ledger", "--json").stdout.splitlines()]
    assert [e["kind"] for e in entries] == ["session_started", "sending", "counted"]
    assert entries[1]["body_sha256"] == "cd" * 32
    assert len(device("ledger", "--json", "--last", "1").stdout.splitlines()) == 1
    head = Ledger.of_home(home).verify().head
    assert device("ledger", "--verify").stdout == f"the chain holds: 3 entries, head {head}\n"
    path = home / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"bytes_up":151000', b'"bytes_up":1', 1))
    done = device("ledger", "--verify")
    assert done.returncode == 1 and "ledger ledger.jsonl: line 1" in done.stderr and "ledger_broken" in done.stderr
    assert device("pause").returncode == 0
    assert device("ledger", "--verify").returncode == 0
    aside = device("ledger", "--file", home / "ledger.jsonl.broken-1")
    assert "keyboard/next, round 3" in aside.stdout
    assert "broken file that was moved aside" in device("status").stderr


def test_status(device):
    out = device("status").stdout
    for words in ("no agent is running", "not paused", "typed", "30", "keyboard", "151.0 kB", "3 entries"):
        assert words in out, words
    told = json.loads(device("status", "--json").stdout)
    assert told["examples"] == {"typed": 30} and told["populations"]["keyboard"]["bytes_up"] == 151_000
    assert not told["running"] and told["ledger_entries"] == 3


def test_pause_resume_refuse_accept(device, home):
    assert "paused until 2" in device("pause", "--for", "2h").stdout
    assert device("pause").stdout == "paused until you resume\n"
    assert not Choices.of_home(home).allows("keyboard", 1e12)
    assert device("refuse", "keyboard").stdout == "refused: keyboard\n"
    assert device("resume").stdout == "resumed; still refused: keyboard\n"
    assert json.loads(device("status", "--json").stdout)["refused"] == ["keyboard"]
    assert device("accept", "keyboard").stdout == "accepted: keyboard\n"
    assert Choices.of_home(home).allows("keyboard", 0.0)
    assert "refused by you: keyboard" in device("ledger").stdout


@pytest.mark.parametrize("text", ["2", "h", "-1h", "0m", "1w", "infs"])
def test_a_time_that_is_none(device, text):
    done = device("pause", f"--for={text}")
    assert done.returncode == 2 and "30m, 2h or 1d" in done.stderr


def test_forget_asks_and_says_what_stays(device, home):
    assert device("forget", "--examples", stdin="n\n").returncode == 130
    assert device("forget").returncode == 2
    assert device("forget", "--examples", "--everything", "--yes").returncode == 2
    out = device("forget", "--examples", stdin="y\n").stdout
    assert "deleted: 30 examples" in out and "what stays: the ledger" in out
    assert "keyboard. It is refused" in device("forget", "--population", "keyboard", "--yes").stdout
    assert "The device is paused" in device("forget", "--everything", "--yes").stdout
    assert "no examples" in device("status").stdout
    assert "keyboard/next, round 3" in device("ledger").stdout


def test_no_such_home(device, tmp_path):
    for name in ("ledger", "status", "pause", "resume", "page"):
        done = device(name, at=tmp_path / "nowhere")
        assert done.returncode == 2 and "no such directory" in done.stderr


def test_the_page_is_served_until_it_is_stopped(home):
    command = [sys.executable, "-m", "covey", "device", "page", "--home", home]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        try:
            url = served.stdout.readline().strip()
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert "What this device does" in answer.read().decode()
        finally:
            served.send_signal(signal.SIGINT)
            assert served.wait(10) == 130
