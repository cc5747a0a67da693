"""The selector: a ticket is answered exactly once, and who is selected is chance alone."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.server.engine import Engine
from covey.server.messages import (
    DeviceArrived,
    DeviceLeft,
    DevicesSelected,
    Envelope,
    WantDevices,
    WantNobody,
    coordinator_address,
    selector_address,
)
from covey.server.selector import Selector, SelectorSettings


def selector(seed=0, **fields):
    base = {"poll_s": 10.0, "max_waiting": 1000}
    return Selector("p", SelectorSettings(**{**base, **fields}), random.Random(seed))


def arrive(role, count, now_s=0.0, prefix="t"):
    return [e for i in range(count) for e in role.receive(DeviceArrived(f"{prefix}{i}"), now_s)]


def want(attempt="a", count=4, at_least=2, patience_s=1.0, give_up_at_s=20.0, held=False, expected_at_s=None):
    return WantDevices(attempt, count, at_least, patience_s, give_up_at_s, held, expected_at_s)


def selected(envelopes):
    (envelope,) = envelopes
    assert envelope.to == coordinator_address("p") and isinstance(envelope.message, DevicesSelected)
    return envelope.message.tickets


def sent_away(envelopes, reason="not_selected"):
    """Return the tickets that were told to come back, all of them for that reason."""
    assert all(e.message.message.reason == reason for e in envelopes)
    return [e.to.removeprefix("device/") for e in envelopes]


def test_nobody_is_selected_before_anybody_is_wanted():
    role = selector()
    assert arrive(role, 3) == [] and role.num_waiting == 3
    assert role.tick(9.9) == []


def test_a_full_selection_is_made_at_once():
    role = selector()
    arrive(role, 6)
    tickets = selected(role.receive(want(count=4), 0.0))
    assert len(set(tickets)) == 4 and role.num_waiting == 2
    assert role.receive(DeviceArrived("late"), 0.0) == []  # one wish is granted once


def test_the_last_missing_device_completes_a_selection():
    role = selector()
    role.receive(want(count=3, at_least=3), 0.0)
    assert arrive(role, 2) == []
    assert set(selected(role.receive(DeviceArrived("last"), 0.0))) == {"t0", "t1", "last"}


def test_after_its_patience_the_goal_is_enough():
    role = selector()
    role.receive(want(count=4, at_least=2, patience_s=1.0), 0.0)
    assert role.next_deadline_s() == 20.0
    arrive(role, 3)
    assert role.next_deadline_s() == 1.0
    assert role.tick(0.999) == []
    assert set(selected(role.tick(1.0))) == {"t0", "t1", "t2"}


def test_after_its_patience_a_device_that_reaches_the_goal_starts_the_round():
    role = selector()
    role.receive(want(count=4, at_least=2), 0.0)
    arrive(role, 1, 5.0)
    assert role.next_deadline_s() == 15.0
    assert set(selected(role.receive(DeviceArrived("second"), 6.0))) == {"t0", "second"}


def test_too_few_devices_are_given_up_and_go_on_waiting():
    role = selector(poll_s=100.0)
    role.receive(want(give_up_at_s=20.0, at_least=2), 0.0)
    arrive(role, 1)
    assert role.tick(19.999) == []
    assert selected(role.tick(20.0)) == ()
    assert role.num_waiting == 1
    assert set(selected(role.receive(want("b", count=1, at_least=1), 20.0))) == {"t0"}


def test_a_poll_ends_after_its_time():
    role = selector()
    arrive(role, 1, 0.0, "early")
    arrive(role, 1, 5.0, "later")
    assert role.next_deadline_s() == 10.0
    assert role.tick(9.999) == []
    assert sent_away(role.tick(10.0)) == ["early0"]
    assert role.next_deadline_s() == 15.0
    assert sent_away(role.tick(99.0)) == ["later0"]
    assert role.next_deadline_s() is None


def test_a_device_whose_poll_ends_with_the_selection_is_selected():
    role = selector(poll_s=1.0)
    role.receive(want(count=9, at_least=2, patience_s=1.0), 0.0)
    arrive(role, 2)
    assert set(selected(role.tick(1.0))) == {"t0", "t1"}


def test_above_max_waiting_somebody_is_sent_away_at_once():
    role = selector(max_waiting=2)
    away = sent_away(arrive(role, 4))
    assert len(set(away)) == 2 and role.num_waiting == 2


def test_whoever_comes_is_equally_likely_to_be_among_those_who_wait():
    stayed = Counter()
    trials, num, room = 4000, 10, 3
    for seed in range(trials):
        role = selector(seed, max_waiting=room)
        arrive(role, num)
        stayed.update(selected(role.receive(want(count=room, at_least=room), 0.0)))
    wanted = trials * room / num
    spread = (trials * room / num * (1 - room / num)) ** 0.5  # of a binomial count
    assert len(stayed) == num and all(abs(n - wanted) < 5 * spread for n in stayed.values())


def test_after_a_selection_those_who_come_compete_with_those_who_stayed_only():
    role = selector(max_waiting=4)
    arrive(role, 4)
    selected(role.receive(want(count=2, at_least=2), 0.0))
    assert role._num_came == role.num_waiting == 2
    assert arrive(role, 2, prefix="new") == [] and role.num_waiting == 4


# While a round reports, the next one's devices are gathered


def test_a_held_wish_is_granted_once_it_is_wanted():
    role = selector()
    assert role.receive(want(count=2, held=True), 0.0) == []
    assert arrive(role, 4) == [] and role.num_waiting == 4
    assert role.next_deadline_s() == 10.0 and role.tick(9.0) == []  # the polls end, and nothing else is due
    assert len(selected(role.receive(want(count=2), 9.0))) == 2


def test_a_poll_that_ends_while_a_round_reports_says_so():
    role = selector()
    role.receive(want(count=9, held=True), 0.0)
    arrive(role, 2)
    assert sent_away(role.tick(10.0), "between_rounds") == ["t0", "t1"]


def test_with_devices_enough_and_the_next_round_far_away_nobody_is_held_in_vain():
    role = selector(poll_s=10.0)
    role.receive(want(count=2, held=True, expected_at_s=100.0), 0.0)
    assert arrive(role, 2) == []
    assert sent_away(arrive(role, 3, 50.0, "early"), "between_rounds") == ["early0", "early1", "early2"]
    assert arrive(role, 1, 90.0, "in_time") == []  # its poll lasts until then


def test_a_wish_that_is_taken_back_selects_nobody():
    role = selector()
    arrive(role, 1)
    role.receive(want("a", count=2), 0.0)
    assert role.receive(WantNobody("another"), 0.0) == []
    assert role.next_deadline_s() == 10.0 and role.receive(WantNobody("a"), 0.0) == []
    assert arrive(role, 3, prefix="late") == [] and role.num_waiting == 4


def test_a_device_that_hung_up_is_not_selected():
    role = selector()
    arrive(role, 4)
    role.receive(DeviceLeft("t1"), 0.0)
    role.receive(DeviceLeft("nobody"), 0.0)
    assert set(selected(role.receive(want(count=3, at_least=3), 0.0))) == {"t0", "t2", "t3"}


def test_a_newer_wish_replaces_the_older():
    role = selector()
    role.receive(want("old", count=9), 0.0)
    role.receive(want("new", count=2), 0.0)
    (envelope,) = arrive(role, 2)
    assert envelope.message.attempt == "new"


def test_everybody_is_sent_away_when_the_server_stops():
    role = selector()
    arrive(role, 3)
    assert sent_away(role.dismiss("restarting"), "restarting") == ["t0", "t1", "t2"]
    assert role.dismiss("restarting") == [] and role.num_waiting == 0


def test_a_message_of_another_role_is_a_bug():
    with pytest.raises(AssertionError, match="does not take Envelope"):
        selector().receive(Envelope("x", None), 0.0)


def test_the_same_chance_selects_the_same_devices():
    def run(seed):
        role = selector(seed)
        arrive(role, 50)
        return selected(role.receive(want(count=10), 0.0))

    assert run(1) == run(1) and run(1) != run(2)


def test_selection_is_uniform_whatever_the_order_of_arrival():
    # Each of 10 devices is selected in a run with probability 3/10, so its count over 4000 runs has mean 1200 and
    # standard deviation sqrt(4000 * 0.3 * 0.7) = 29.0; 5 of them is 145. The seed is fixed.
    role, counts = selector(seed=7), Counter()
    for _ in range(4000):
        arrive(role, 10)
        counts.update(selected(role.receive(want(count=3), 0.0)))
        role.dismiss("over")
    assert len(counts) == 10 and all(abs(n - 1200) < 145 for n in counts.values())


EVENTS = st.one_of(
    st.just("arrive"),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("want"), st.integers(1, 6), st.integers(0, 5), st.floats(0, 3), st.floats(0, 30)),
    st.tuples(st.just("wait"), st.floats(0, 15)),
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=60), st.integers(0, 9))
def test_a_ticket_is_answered_exactly_once(events, seed):
    role, now, answers, hung_up, num = selector(seed, max_waiting=6), 0.0, Counter(), set(), 0
    wishes = granted = 0

    def take(envelopes):
        nonlocal granted
        for e in envelopes:
            if isinstance(e.message, DevicesSelected):
                granted += 1
                answers.update(e.message.tickets)
            else:
                answers[e.to.removeprefix("device/")] += 1

    for event in events:
        if event == "arrive":
            take(role.receive(DeviceArrived(f"t{num}"), now))
            num += 1
        elif event[0] == "leave" and f"t{event[1]}" not in answers and event[1] < num:
            hung_up.add(f"t{event[1]}")
            take(role.receive(DeviceLeft(f"t{event[1]}"), now))
        elif event[0] == "want" and wishes == granted:
            wishes += 1
            take(role.receive(want(f"a{wishes}", event[1] + event[2], event[1], event[3], now + event[4]), now))
        elif event[0] == "wait":
            now += event[1]
            take(role.tick(now))
            due = role.next_deadline_s()
            assert due is None or due > now  # nothing that is due is left undone, so a driver never spins
    take(role.tick(now + 100.0))
    assert wishes == granted
    assert role.num_waiting == 0 and role.next_deadline_s() is None
    assert set(answers.values()) <= {1}
    assert set(answers) | hung_up == {f"t{i}" for i in range(num)} and not set(answers) & hung_up


# The engine


class Echo:
    """A role that answers every number above 0 with the next lower one, to another role."""

    def __init__(self, to, deadline_s=None):
        self.to, self.deadline_s, self.seen = to, deadline_s, []

    def receive(self, message, now_s):
        self.seen.append((message, now_s))
        return [Envelope(self.to, message - 1)] if message else [Envelope("device/x", "done")]

    def next_deadline_s(self):
        return self.deadline_s

    def tick(self, now_s):
        return [Envelope(self.to, 1)]


def test_an_engine_delivers_until_all_is_quiet():
    a, b = Echo("b"), Echo("a")
    engine = Engine({"a": a, "b": b})
    assert engine.send("a", 5, 2.0) == [Envelope("device/x", "done")]
    assert a.seen == [(5, 2.0), (3, 2.0), (1, 2.0)] and b.seen == [(4, 2.0), (2, 2.0), (0, 2.0)]


def test_an_engine_returns_in_order_what_it_has_no_role_for():
    out = [Envelope("device/1", 1), Envelope("aggregator/p/t/0", 2), Envelope("device/2", 3)]
    assert Engine({"a": Echo("a")}).deliver(out, 0.0) == out


def test_an_engine_keeps_the_earliest_deadline_and_ticks_every_role():
    assert Engine({}).next_deadline_s() is None
    assert Engine({"a": Echo("b"), "b": Echo("a")}).next_deadline_s() is None
    engine = Engine({"a": Echo("b"), "b": Echo("a", 7.0), "c": Echo("a", 3.0)})
    assert engine.next_deadline_s() == 3.0
    assert engine.tick(7.0) == [Envelope("device/x", "done")] * 3


def test_addresses_of_a_population_are_its_own():
    assert len({selector_address("p"), selector_address("q"), coordinator_address("p")}) == 3
