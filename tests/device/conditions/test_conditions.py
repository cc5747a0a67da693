"""All conditions together: which count, when they are read, and what a flapping one does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.device.conditions.conditions import CHOSEN_BY_PLANS, NAMES, SETTLE_S, Conditions
from covey.device.conditions.source import Assumed, Reading
from covey.device.conditions.system import assumptions, system_conditions
from covey.plans.manifest import Eligibility
from covey.types.clock import VirtualClock
from covey.types.errors import UsageError


class Scripted:
    """Holds when ``script`` says so; counts how often it was read."""

    def __init__(self, script, max_age_s=0.5):
        self.script, self.max_age_s, self.num_reads = script, max_age_s, 0

    def read(self):
        self.num_reads += 1
        return Reading(True) if self.script() else Reading(False, "do something")


def conditions(clock, settle_s=SETTLE_S, **scripts):
    sources = {name: Scripted(script) for name, script in scripts.items()}
    return Conditions(sources, clock, settle_s=settle_s), sources


def test_every_condition_counts_and_says_what_to_do():
    subject, _ = conditions(VirtualClock(), **{name: (lambda: False) for name in NAMES})
    verdict = subject.check()
    assert not verdict.holds and verdict.lapsed == NAMES
    assert verdict.hints[0] == "idle: do something"


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_can_do_without_some_and_not_without_others(name):
    subject, _ = conditions(VirtualClock(), **{name: lambda: False})
    none = Eligibility(idle=False, charging=False, unmetered=False)
    assert subject.check(none).holds == (name in CHOSEN_BY_PLANS)
    assert not subject.check(Eligibility()).holds and not subject.check().holds


def test_a_reading_serves_for_a_while():
    clock = VirtualClock()
    subject, sources = conditions(clock, idle=lambda: True)
    for _ in range(100):
        assert subject.check().holds
    assert sources["idle"].num_reads == 1
    clock.advance_to(0.5)
    subject.check()
    assert sources["idle"].num_reads == 2


def test_a_lapse_counts_at_once_and_its_end_after_a_while():
    clock, on = VirtualClock(), [True]
    subject, _ = conditions(clock, charging=lambda: on[0])
    assert subject.check().holds  # the first reading needs no past
    on[0] = False
    clock.advance_to(1)
    assert subject.check().lapsed == ("charging",)
    on[0] = True
    clock.advance_to(2)
    assert "counts in 10 s" in subject.check().hints[0]
    clock.advance_to(2 + SETTLE_S)
    assert subject.check().holds


@given(st.integers(0, 9), st.floats(0.05, 0.85))
def test_flapping_ten_times_a_second_opens_the_gate_at_most_once(phase, share):
    """Two looks a second over ten minutes at something that flaps at 10 Hz: one opening at the start, and no storm."""
    clock = VirtualClock()

    def flapping():
        # Looks are not in step with the flapping: a look every 0.53 s meets every part of its 0.1 s.
        return (clock.now_s() * 10 + phase / 10) % 1 < share

    subject, _ = conditions(clock, charging=flapping)
    openings, was_open = 0, False
    for step in range(1132):
        clock.advance_to(step * 0.53)
        is_open = subject.check().holds
        openings += is_open and not was_open
        was_open = is_open
    assert openings <= 1


def test_the_machine_slept_between_two_looks():
    clock, on = VirtualClock(), [True]
    subject, _ = conditions(clock, charging=lambda: on[0])
    subject.check()
    on[0] = False
    clock.advance_to(8 * 3600)
    assert not subject.check().holds


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "plan9"])
def test_every_platform_has_every_condition_and_every_one_can_be_assumed(tmp_path, platform):
    clock = VirtualClock()
    subject = system_conditions(tmp_path, clock, assume=NAMES, platform=platform)
    assert subject.check().holds
    subject.close()
    # On this machine the tools of other platforms are missing: what cannot be told does not hold, and a hint helps.
    subject = system_conditions(tmp_path, clock, platform=platform)
    for hint in subject.check().hints:
        name = hint.partition(":")[0]
        assert name in ("storage", "memory") or f"--assume {name}" in hint
    subject.close()


def test_an_application_brings_its_own_sources(tmp_path):
    mine = Scripted(lambda: False)
    subject = system_conditions(
        tmp_path, VirtualClock(), assume=NAMES[1:], instead={"idle": mine, "not in a call": mine}
    )
    assert subject.check().lapsed == ("idle", "not in a call")
    subject.close()
    assert Assumed().read().holds


def test_assumptions_are_read_and_misspelled_ones_named():
    assert assumptions("charging, idle") == ("charging", "idle")
    with pytest.raises(UsageError, match="--assume: expected some of idle, charging"):
        assumptions("chargin")
