"""When a device comes back is said in one place, for every kind of answer."""

import pytest

from covey.server.pace import PaceSettings, PaceSteering
from covey.server.reconnect import Reconnect
from covey.types.errors import BusyError, RoundClosedError
from covey.wire.messages import Abandoned, ComeBack, Reported, Taken

RECONNECT = Reconnect(retry_s=3.0, paused_retry_s=50.0)


@pytest.mark.parametrize(
    ("message", "wanted_s"),
    [
        (ComeBack(retry_after_s=0.0, reason="not_selected"), 3.0),
        (ComeBack(retry_after_s=0.0, reason="between_rounds"), 3.0),
        (ComeBack(retry_after_s=0.0, reason="restarting"), 3.0),
        (ComeBack(retry_after_s=0.0, reason="paused"), 50.0),
        (Reported(counted=True, retry_after_s=9.0), 0.0),
        (Abandoned(retry_after_s=9.0), 0.0),
        (BusyError("report", expected="a free buffer", got="none"), 1.0),
    ],
    ids=lambda x: getattr(x, "reason", type(x).__name__),
)
def test_every_answer_gets_its_time(message, wanted_s):
    assert RECONNECT.stamped(message, 100.0).retry_after_s == wanted_s


def test_devices_come_when_they_are_wanted_next():
    away = ComeBack(retry_after_s=0.0, reason="between_rounds")
    assert RECONNECT.stamped(away, 100.0, 140.0).retry_after_s == 40.0
    assert RECONNECT.stamped(away, 100.0, 90.0).retry_after_s == 3.0  # overdue: soon, and not at once


@pytest.mark.parametrize("message", [Taken(step="mask"), b"bytes", RoundClosedError("r", expected="a", got="b")])
def test_what_has_no_time_goes_through(message):
    assert RECONNECT.stamped(message, 0.0) is message


@pytest.mark.parametrize(
    ("message", "paced"),
    [
        (ComeBack(retry_after_s=0.0, reason="not_selected"), True),
        (ComeBack(retry_after_s=0.0, reason="between_rounds"), True),
        (ComeBack(retry_after_s=0.0, reason="restarting"), False),
        (ComeBack(retry_after_s=0.0, reason="paused"), False),
        (Reported(counted=True, retry_after_s=0.0), True),
        (Abandoned(retry_after_s=0.0), True),
        (BusyError("report", expected="a free buffer", got="none"), False),
    ],
    ids=lambda x: getattr(x, "reason", type(x).__name__),
)
def test_a_device_that_may_be_needed_again_is_paced(message, paced):
    pace = PaceSteering(PaceSettings(wanted=10, least_s=600.0))
    got = Reconnect(retry_s=3.0, paused_retry_s=50.0, pace=pace).stamped(message, 100.0).retry_after_s
    assert (got >= 600.0) == paced
