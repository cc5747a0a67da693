"""One session: one device in one round, as a state machine that does no I/O itself.

The driver (the agent over HTTPS, or the simulation in memory) carries out the effect that each call returns and
answers with the matching call::

    effect             the driver does                     and calls
    SendCheckIn        sends the message                   answered(Assignment | ComeBack)
    FetchBlob          gets the bytes of that name         fetched(data)
    Train              trains on the device's examples     trained(result)
    SendReport         sends the body                      reported(Reported)
    SendAbandon        tells the server, once              abandoned()
    Finished           nothing more: the outcome is final

Where something fails it calls ``failed(error)``, and where the device may no longer train, ``stopped(reason)``.
Secure aggregation takes its place between ``trained`` and ``SendReport``.

Laws: a call that the state does not expect raises StateError and changes nothing; the report's bytes are made exactly
once, and a retry sends the identical bytes (a second encoding under one mask would be a two-time pad).
"""

from dataclasses import dataclass
from enum import Enum

from covey.compression.codec import codec_named
from covey.device.policy import OwnerPolicy, check_assignment, check_offer
from covey.device.private import private_segments
from covey.device.trainer import LocalResult, TrainingJob, hyper_values
from covey.device.verified import Verified
from covey.plans.manifest import CLIP
from covey.plans.plan import Plan
from covey.privacy.randomness import Randomness, refuse_seeded
from covey.types.errors import (
    AlreadyCountedError,
    BusyError,
    CoveyError,
    SessionError,
    StateError,
    TransportError,
    UnauthorizedError,
)
from covey.types.tensors import Tensors
from covey.wire.framing import encode_update
from covey.wire.messages import Abandon, Assignment, BlobRef, CheckIn, ComeBack, Reported

__all__ = [
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
    "Session",
    "SessionState",
    "TIME_IS_UP",
    "Train",
    "Verified",
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
class SendReport:
    """Send the update. The same object comes back for every retry."""

    session: str
    body: bytes


@dataclass(frozen=True, slots=True)
class SendAbandon:
    """Tell the server that this session ends here. Best effort: the server notices by itself at its deadline."""

    session: str
    message: Abandon


@dataclass(frozen=True, slots=True)
class Finished:
    """The session is over."""

    outcome: Outcome


Effect = SendCheckIn | FetchBlob | Train | SendReport | SendAbandon | Finished


class SessionState(Enum):
    """Where a session stands: which call it expects next."""

    IDLE = "idle"
    CHECKING_IN = "checking_in"
    FETCHING_PLAN = "fetching_plan"
    FETCHING_CHECKPOINT = "fetching_checkpoint"
    FETCHING_SHARED = "fetching_shared"
    TRAINING = "training"
    REPORTING = "reporting"
    ABANDONING = "abandoning"
    FINISHED = "finished"


_FETCHING = (SessionState.FETCHING_PLAN, SessionState.FETCHING_CHECKPOINT, SessionState.FETCHING_SHARED)


class Session:
    """The state machine. One object serves one session; not thread-safe."""

    def __init__(
        self,
        policy: OwnerPolicy,
        *,
        seed: bytes,
        verified: Verified | None = None,
        noise: Randomness | None = None,
    ) -> None:
        """Make a session that has not begun.

        Args:
            policy: what the device's owner accepts.
            seed: 32 bytes for the order of examples and for dropout; on a device from the operating system.
            verified: what this process has already checked.
            noise: for plans with differential privacy; on a device from a fresh seed of the operating system.

        Raises:
            SeededNoiseError: injected noise outside a simulation.
        """
        if noise is not None and not policy.privacy.simulated:
            refuse_seeded(noise, "session")
        self._noise = noise
        self.state = SessionState.IDLE
        self.assignment: Assignment | None = None
        self._policy = policy
        self._seed = seed
        self._verified = verified or Verified()
        self._plan: Plan | None = None
        self._params: Tensors = {}
        self._effect: Effect | None = None
        self._outcome: Outcome | None = None
        self._trained = (0, 0)

    @property
    def outcome(self) -> Outcome | None:
        """How the session ended, or None while it lasts."""
        return self._outcome if self.state is SessionState.FINISHED else None

    def start(self) -> Effect:
        """Begin: check in."""
        self._expect(SessionState.IDLE)
        return self._go(SessionState.CHECKING_IN, SendCheckIn(CheckIn(population=self._policy.population)))

    def answered(self, message: Assignment | ComeBack) -> Effect:
        """Take the answer to the check-in."""
        self._expect(SessionState.CHECKING_IN)
        if isinstance(message, ComeBack):
            return self._finish(Waiting(message.reason, message.retry_after_s))
        self.assignment = message
        try:
            check_offer(self._policy, message)
        except CoveyError as error:
            return self._give_up(error.code, error)
        return self._go(SessionState.FETCHING_PLAN, FetchBlob(message.plan, "plan"))

    def fetched(self, data: bytes) -> Effect:
        """Take a blob. It is verified here, whoever fetched it."""
        self._expect(*_FETCHING)
        assert self.assignment is not None
        try:
            return self._take_blob(self.assignment, data)
        except CoveyError as error:
            return self._give_up(error.code, error)

    def trained(self, result: LocalResult) -> Effect:
        """Take the update and encode it, once."""
        self._expect(SessionState.TRAINING)
        assert self.assignment is not None
        assert self._plan is not None
        manifest, segments = self._plan.manifest, result.segments
        if manifest.privacy.noise is not None:
            clip = hyper_values(manifest, self.assignment.hyper)[CLIP]
            try:
                segments = private_segments(result, manifest.privacy, clip, self._noise)
            except CoveyError as error:
                return self._give_up(error.code, error)
        codecs = {k: codec_named(name) for k, name in manifest.codecs(self.assignment.phase).items()}
        # A part is encoded and dropped before the next: the update is never held twice.
        body = encode_update([(k, c.encode(segments.pop(k))) for k, c in codecs.items()])
        self._trained = (result.num_examples, result.num_steps)
        self._params = {}
        return self._go(SessionState.REPORTING, SendReport(self.assignment.session, body))

    def reported(self, message: Reported) -> Effect:
        """Take the answer to the report."""
        self._expect(SessionState.REPORTING)
        return self._finish(self._counted(message.retry_after_s))

    def abandoned(self) -> Effect:
        """Note that the server was told, or could not be."""
        self._expect(SessionState.ABANDONING)
        assert self._outcome is not None
        return self._finish(self._outcome)

    def failed(self, error: CoveyError) -> Effect:
        """Take an error of the step at hand.

        A transport failure, or a server without room, gives the same effect again: the driver waits and tries again,
        or calls :meth:`stopped`. In training, every error is the device's own, and the server is told.
        """
        self._expect(*(s for s in SessionState if s not in (SessionState.IDLE, SessionState.FINISHED)))
        assert self._effect is not None
        if self.state is SessionState.ABANDONING:
            return self.abandoned()
        if self.state is SessionState.TRAINING:
            return self._give_up(error.code, error)
        if self.state is SessionState.REPORTING and isinstance(error, AlreadyCountedError):
            return self._finish(self._counted(None))
        if isinstance(error, TransportError | BusyError):
            return self._effect
        if self.state in _FETCHING and not isinstance(error, SessionError | UnauthorizedError):
            return self._give_up(error.code, error)
        return self._finish(Lost(error))

    def stopped(self, reason: str = CONDITION_LAPSED, error: CoveyError | None = None) -> Effect:
        """End early: a condition lapsed or the time is up; or, with its last ``error``, the driver tried enough."""
        self._expect(*(s for s in SessionState if s is not SessionState.FINISHED))
        if self.state is SessionState.ABANDONING:
            return self.abandoned()
        if error is not None:
            return self._finish(Lost(error))
        if self.state in (SessionState.IDLE, SessionState.CHECKING_IN):
            return self._finish(GaveUp(reason, None))
        return self._give_up(reason, None)

    def _take_blob(self, assignment: Assignment, data: bytes) -> Effect:
        if self.state is SessionState.FETCHING_PLAN:
            plan = self._verified.plan(assignment.plan, data)
            check_assignment(self._policy, plan, assignment)
            self._plan = plan
            return self._go(SessionState.FETCHING_CHECKPOINT, FetchBlob(assignment.checkpoint, "checkpoint"))
        assert self._plan is not None
        manifest = self._plan.manifest
        if self.state is SessionState.FETCHING_CHECKPOINT:
            self._params = self._verified.tensors(assignment.checkpoint, manifest.params, data, "checkpoint")
            if assignment.shared is not None:
                return self._go(SessionState.FETCHING_SHARED, FetchBlob(assignment.shared, "shared"))
            return self._train(self._plan, assignment, {})
        assert assignment.shared is not None
        specs = manifest.phases[assignment.phase].shared
        return self._train(self._plan, assignment, self._verified.tensors(assignment.shared, specs, data, "shared"))

    def _train(self, plan: Plan, assignment: Assignment, shared: Tensors) -> Effect:
        job = TrainingJob(plan, assignment.phase, self._params, shared, assignment.hyper, self._seed)
        within_s = min(plan.manifest.budget.time_s, assignment.report_within_s)
        return self._go(SessionState.TRAINING, Train(job, within_s))

    def _counted(self, retry_after_s: float | None) -> Counted:
        assert self.assignment is not None
        return Counted(self.assignment.round, *self._trained, retry_after_s)

    def _give_up(self, reason: str, error: CoveyError | None) -> Effect:
        assert self.assignment is not None
        private = self._plan is not None and self._plan.manifest.privacy.noise is not None
        # What failed in training depends on the examples: under differential privacy nobody is told without noise.
        told = WITHHELD if private and error is not None and self.state is SessionState.TRAINING else reason
        self._outcome, self._params = GaveUp(reason, error), {}
        return self._go(SessionState.ABANDONING, SendAbandon(self.assignment.session, Abandon(reason=told)))

    def _finish(self, outcome: Outcome) -> Effect:
        self._outcome, self._params, self._plan = outcome, {}, None
        return self._go(SessionState.FINISHED, Finished(outcome))

    def _go(self, state: SessionState, effect: Effect) -> Effect:
        self.state, self._effect = state, effect
        return effect

    def _expect(self, *states: SessionState) -> None:
        if self.state not in states:
            expected = " or ".join(s.value for s in states)
            raise StateError("session", expected=f"a call in {expected}", got=f"one in {self.state.value}")
