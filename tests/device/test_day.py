"""A day of a device's life on the virtual clock: it trains in the minutes in which it may, and in no other."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from covey.device.conditions.conditions import SETTLE_S
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.pace import Pace

from . import world
from .day import CONDITIONS, DAY_MINUTES, MINUTE_S, Trace, live, ordinary_day

MAY_BE_LATE_S = 1.0
"""A lapse is noticed within a second: the chunk at hand, and the age of a reading, are as long at most."""


def lived(trace, seed=0):
    with tempfile.TemporaryDirectory() as name, DeviceHome(Path(name)) as home:
        home.examples.add_many("points", world.points(13), world.SCHEMA)
        server, trainer, events = live(home, trace, seed)
        ledger = Ledger.of_home(home.path)
        ledger.verify()
        return server, trainer, events, list(ledger.entries())


def assert_only_in_allowed_minutes(trace, server, trainer):
    for at_s in trainer.worked_s:
        assert trace.allows(at_s) or trace.allows(at_s - MAY_BE_LATE_S), at_s / MINUTE_S
    for call, at_s in server.requests:
        if call not in (
            "abandon",
            "enroll",
        ):  # enrolling opens a check-in; an abandon says that it lapsed
            assert trace.allows(at_s) or trace.allows(at_s - MAY_BE_LATE_S), (call, at_s / MINUTE_S)


def assert_sane(server, entries):
    assert all(len(set(bodies)) == 1 for bodies in server.bodies.values())
    sent = [e.session for e in entries if e.kind == "sending"]
    assert len(sent) == len(set(sent)) and set(server.bodies) <= set(sent)
    assert {e.session for e in entries if e.kind == "counted"} <= server.counted


def test_an_ordinary_day():
    trace = ordinary_day()
    server, trainer, _, entries = lived(trace)
    assert_only_in_allowed_minutes(trace, server, trainer)
    assert_sane(server, entries)
    hours = {int(s // 3600) for s in trainer.worked_s}
    assert hours == {0, 1, 2, 5, 6, 23}  # charging at night, but for the hours of sleep
    # In six hours, two sessions of 42 s and at most 330 s of waiting make 52 turns; six of them begin late.
    assert len(server.counted) >= 2 * (52 - 6)
    told = [reason for _, reason in server.abandoned]
    assert set(told) <= {"condition_lapsed", "time_is_up"}
    # By day it only looks: four looks a minute, and not one request.
    assert not [at_s for _, at_s in server.requests if 8 * 3600 < at_s < 22 * 3600]


def test_a_lapse_ends_a_session_and_the_server_is_told():
    """Unplugged in the middle of training: one session is abandoned, within a second, and none is begun."""
    plugged = [True] + [False] * 59
    trace = Trace({"idle": [True] * 60, "charging": plugged, "unmetered": [True] * 60}, [False] * 60)
    server, trainer, events, entries = lived(trace)
    assert_only_in_allowed_minutes(trace, server, trainer)
    assert max(trainer.worked_s) <= 60 + MAY_BE_LATE_S
    (abandoned,) = [(at_s, call) for call, at_s in server.requests if call == "abandon"]
    assert abandoned[0] <= 60 + 2 * MAY_BE_LATE_S and server.abandoned[0][1] == "condition_lapsed"
    assert entries[-1].kind == "gave_up" and entries[-1].reason == "condition_lapsed"
    assert [e.kind for e in events].count("held") == 1


def test_flapping_minutes_cost_few_sessions():
    flapping = [m % 2 == 0 for m in range(120)]
    trace = Trace({"idle": [True] * 120, "charging": flapping, "unmetered": [True] * 120}, [False] * 120)
    server, trainer, _, _ = lived(trace)
    assert_only_in_allowed_minutes(trace, server, trainer)
    # A minute allows one session after it has settled; each that lapses makes the next wait longer.
    assert len(server.abandoned) <= 60 and Pace().conditions_s > SETTLE_S


runs = st.lists(st.tuples(st.booleans(), st.integers(1, 240)), min_size=1, max_size=12)


def minutes(pieces):
    out = [value for value, length in pieces for _ in range(length)]
    return (out * (DAY_MINUTES // len(out) + 1))[:DAY_MINUTES]


@given(st.tuples(runs, runs, runs), runs, st.integers(0, 2**16))
@settings(max_examples=15)
def test_random_days(conditions, sleep, seed):
    trace = Trace(
        {name: minutes(pieces) for name, pieces in zip(CONDITIONS, conditions, strict=True)},
        [not awake for awake in minutes(sleep)],
    )
    server, trainer, _, entries = lived(trace, seed)
    assert_only_in_allowed_minutes(trace, server, trainer)
    assert_sane(server, entries)
    if not any(trace.allows(m * MINUTE_S) for m in range(DAY_MINUTES)):
        assert server.requests == [] and trainer.worked_s == []
