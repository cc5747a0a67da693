"""The owner's say: what there is to see, choices that count at once, and forgetting that leaves nothing."""

import math

import numpy as np
import pytest

from covey.device.choices import Choices
from covey.device.consent import Owner
from covey.device.examples import ExampleStore
from covey.device.files import file_lock, folder_name
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger, LedgerEntry
from covey.device.populations import Membership, Populations
from covey.device.statement import protection
from covey.types.errors import UsageError

from . import world

MARK = np.full(3, 1.2345678, np.float32)


@pytest.fixture
def home(tmp_path):
    """Return a state directory in which an agent was at work."""
    path = tmp_path / "home"
    with DeviceHome(path) as h:
        points = {"x": np.tile(MARK, (50, 1)), "y": np.zeros(50, np.int32)}
        h.examples.add_many("points", points, world.SCHEMA)
        h.examples.add_many("other", points, world.SCHEMA)
        (path / "blobs" / ("a" * 64)).write_bytes(b"plan")
    for name in ("p", "q"):
        key = world.OWNER.public_key().public_bytes_raw().hex()
        Populations(path).join(Membership(population=name, server="https://server", owner_key=key))
    (path / "schedule.json").write_text('{"p": 5.0, "q": 6.0}')
    (path / "credentials.json").write_text('[{"population": "p", "bearer": "SECRET-P"}, {"population": "q"}]')
    personal = path / "personal" / folder_name("p")
    personal.mkdir(parents=True)
    (personal / "tuned.bin").write_bytes(MARK.tobytes())
    kept = path / "kept" / folder_name("p")
    kept.mkdir(parents=True)
    (kept / "variate.params").write_bytes(MARK.tobytes())
    (personal / "release.json").write_bytes(b"{}")
    (path / "examples.db.broken-1").write_bytes(MARK.tobytes() * 10)
    ledger = Ledger.of_home(path)
    for number in range(1, 4):
        facts = {
            "population": "p", "task": "next", "session": f"s{number}", "round": number, "plan": "ab" * 32,
            "summary": "next: fedavg", "mode": "secure", "min_cohort": 20, "epsilon": 8.0, "delta": 1e-6,
        }  # fmt: skip
        ledger.append(LedgerEntry(at_s=100.0 * number, kind="session_started", **facts))
        if number < 3:
            sent = {**facts, "num_examples": 40, "bytes_down": 5000, "bytes_up": 700, "body_sha256": "cd" * 32}
            ledger.append(LedgerEntry(at_s=100.0 * number + 10, kind="sending", **sent))
            end = "counted" if number == 1 else "lost"
            ledger.append(LedgerEntry(at_s=100.0 * number + 11, kind=end, reason="" if number == 1 else "x", **sent))
        else:
            ledger.append(
                LedgerEntry(at_s=100.0 * number + 5, kind="gave_up", reason="condition_lapsed", bytes_up=9, **facts)
            )
    return path


@pytest.fixture
def owner(home):
    return Owner(home, clock=lambda: 1000.0)


def files_of(home):
    return b"".join(p.read_bytes() for p in home.rglob("*") if p.is_file())


def kinds(owner):
    return [(e.kind, e.population) for e in owner.ledger.entries() if not e.session]


def test_the_overview_tells_what_happened(owner):
    seen = owner.overview()
    assert [(c.name, c.num_examples) for c in seen.collections] == [("other", 50), ("points", 50)]
    (total,) = seen.totals
    assert (total.population, total.num_sessions, total.num_counted) == ("p", 3, 1)
    assert (total.bytes_down, total.bytes_up) == (10_000, 1400)  # what was given up sent nothing
    assert [s.outcome for s in seen.sessions] == ["counted", "sent, then lost: x", "given up: condition_lapsed"]
    assert seen.sessions[0].began_at_s == 100.0
    assert "masked: only a sum over at least 20 devices" in seen.sessions[0].protection
    assert "epsilon 8, delta 1e-06" in seen.sessions[0].protection
    assert seen.chain is not None and seen.chain.num_entries == 8
    assert not seen.is_running and seen.problems == ["examples.db.broken-1: a broken file that was moved aside"]


def test_plain_mode_is_called_what_it_is():
    text = protection(LedgerEntry(at_s=0.0, kind="sending", mode="plain", min_cohort=10))
    assert text == "not masked: the server adds it up with at least 9 others, but could look at it"


def test_a_session_of_which_the_answer_is_not_known_says_so(owner):
    owner.ledger.append(
        LedgerEntry(at_s=900.0, kind="sending", population="p", session="s9", mode="secure", bytes_up=5)
    )
    assert owner.overview().sessions[-1].outcome == "sent; the answer is not known"


def test_a_running_agent_is_seen_and_may_go_on(home, owner):
    with DeviceHome(home):
        assert owner.overview().is_running
        owner.pause(10.0)
        assert owner.forget_examples("points") == 50
    assert not owner.overview().is_running


def test_choices_count_and_are_recorded(home, owner):
    owner.pause(60.0)
    assert not Choices.of_home(home).allows("p", 1059.0) and Choices.of_home(home).allows("p", 1060.0)
    owner.pause(math.inf)
    owner.resume()
    owner.refuse("p")
    owner.accept("p")
    assert kinds(owner) == [("paused", ""), ("paused", ""), ("resumed", ""), ("refused", "p"), ("accepted", "p")]
    assert [a.text for a in owner.overview().acts][:1] == ["paused by you"]
    for name in ("", "x" * 201):
        with pytest.raises(UsageError, match="a name of 1 to 200 characters"):
            owner.refuse(name)


def test_forgetting_examples_leaves_nothing_of_them(home, owner):
    assert MARK.tobytes() in files_of(home)
    assert owner.forget_examples() == 100
    assert MARK.tobytes() not in files_of(home)
    assert (home / "personal" / folder_name("p") / "release.json").exists()
    assert b"SECRET-P" in files_of(home)
    (entry,) = (e for e in owner.ledger.entries() if e.kind == "forgot")
    assert (entry.num_examples, entry.reason) == (100, "all collections")
    owner.ledger.verify()


def test_forgetting_one_collection_keeps_the_others(home, owner):
    assert owner.forget_examples("points") == 50
    with ExampleStore(home / "examples.db") as store:
        assert store.collections() == {"other": 50}
    assert owner.forget_examples("no such collection") == 0


def test_forgetting_a_population_refuses_it_and_keeps_the_rest(home, owner):
    owner.forget_population("p")
    assert (home / "schedule.json").read_bytes() == b'{"q":6.0}'
    assert [m.population for m in Populations(home).read()] == ["q"] == owner.overview().joined
    assert b"SECRET-P" not in files_of(home) and b'"q"' in (home / "credentials.json").read_bytes()
    assert list((home / "blobs").iterdir()) == []
    assert not (home / "personal" / folder_name("p")).exists()
    assert not (home / "kept" / folder_name("p")).exists()
    assert Choices.of_home(home).read().refused == {"p"}
    assert [s.entry.population for s in owner.overview().sessions] == ["p"] * 3  # the record of what left stays
    with ExampleStore(home / "examples.db") as store:
        assert store.count("points") == 50


def test_forgetting_everything_leaves_the_record_and_a_paused_device(home, owner):
    (home / "something-of-a-later-version").write_bytes(MARK.tobytes())
    assert owner.forget_everything() == 100
    left = files_of(home)
    assert MARK.tobytes() not in left and b"SECRET-P" not in left
    names = {p.name.partition(".")[0] for p in home.iterdir()} - {"agent"}
    assert names == {"ledger", "choices", "examples", "blobs", "lock"}
    assert Choices.of_home(home).read().paused_until_s == math.inf
    assert len(owner.overview().sessions) == 3
    owner.ledger.verify()
    DeviceHome(home).close()  # an agent can begin again


@pytest.mark.parametrize("broken", ["ledger.jsonl", "choices.json", "examples.db", "credentials.json"])
def test_one_broken_file_hides_nothing_else_and_stops_no_forgetting(home, owner, broken):
    (home / broken).write_bytes(b"\xff broken " * 1000)
    seen = owner.overview()
    assert (seen.chain is None) == (broken == "ledger.jsonl")
    assert (seen.chosen is None) == (broken == "choices.json")
    assert bool(seen.collections) == (broken != "examples.db")
    assert len(seen.problems) == 1 + (broken != "credentials.json")
    owner.forget_population("p")
    owner.forget_everything()
    assert MARK.tobytes() not in files_of(home) and b"SECRET-P" not in files_of(home)
    owner.ledger.verify()


def test_no_state_directory_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="expected a device's state directory"):
        Owner(tmp_path / "nowhere")


def test_a_look_does_not_wait_for_a_held_lock(home, owner):
    with file_lock(home / "lock"):
        assert owner.overview().is_running
