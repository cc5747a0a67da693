"""What a session asks of its driver, and how it can end: closed unions of plain values."""

from dataclasses import dataclass

from covey.device.trainer import TrainingJob
from covey.types.errors import CoveyError
from covey.wire.messages import Abandon, BlobRef, CheckIn

__all__ = [
    "AwaitStep",
    "Certify",
    "CONDITION_LAPSED",
    "Counted",
    "Effect",
    "FetchBlob",
    "Finished",
    "GaveUp",
    "Lost",
    "Outcome",
    "SendAbandon",
    "SendCheckIn",
    "SendReport",
    "SendStep",
    "TIME_IS_UP",
    "Train",
    "WITHHELD",
    "Waiting",
]

CONDITION_LAPSED = "condition_lapsed"
"""The reason that a device gives when it may no longer train: not idle any more, unplugged, or told to stop."""

TIME_IS_UP = "time_is_up"
"""The reason that a device gives when the plan's time budget, or the round's deadline, has passed."""

WITHHELD = "withheld"
"""The reason that a device gives in place of an error of training where the plan has noise."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The update is in the sum. ``retry_after_s`` is None where the server's answer was lost on the way."""

    round: int
    num_examples: int
    num_steps: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The server has no work now."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The device ended the session: ``error`` says why, or None where it was told to stop (``reason``)."""

    reason: str
    error: CoveyError | None


@dataclass(frozen=True, slots=True)
class Lost:
    """The server ended the session, or could not be reached."""

    error: CoveyError


Outcome = Counted | Waiting | GaveUp | Lost


@dataclass(frozen=True, slots=True)
class SendCheckIn:
    """Ask for work."""

    message: CheckIn


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Get a blob, from a cache or the server. ``what``: ``plan``, ``checkpoint`` or ``shared``."""

    ref: BlobRef
    what: str


@dataclass(frozen=True, slots=True)
class Train:
    """Run the job over the examples that ``job.plan.manifest.examples`` selects, within ``within_s`` seconds."""

    job: TrainingJob
    within_s: float


@dataclass(frozen=True, slots=True)
class Certify:
    """Get an identity from the enrolment authority that the owner pinned, or take one that is still good."""


@dataclass(frozen=True, slots=True)
class SendReport:
    """Send the update. The same object comes back for every retry."""

    session: str
    body: bytes


@dataclass(frozen=True, slots=True)
class SendStep:
    """Send a message of a secure sum. The same object comes back for every retry."""

    session: str
    step: str
    body: bytes

    def __repr__(self) -> str:
        """Show the step and the size only."""
        return f"SendStep({self.step}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class AwaitStep:
    """Wait for what a step of a secure sum leads to."""

    session: str
    step: str


@dataclass(frozen=True, slots=True)
class SendAbandon:
    """Tell the server that this session ends here. Best effort: the server notices by itself at its deadline."""

    session: str
    message: Abandon


@dataclass(frozen=True, slots=True)
class Finished:
    """The session is over."""

    outcome: Outcome


Effect = SendCheckIn | FetchBlob | Train | Certify | SendReport | SendStep | AwaitStep | SendAbandon | Finished
