"""One session: one device in one round, as a state machine that does no I/O itself.

The driver (the agent over HTTPS, or the simulation in memory) carries out the effect that each call returns and
answers with the matching call::

    effect             the driver does                     and calls
    SendCheckIn        sends the message                   answered(Assignment | ComeBack)
    FetchBlob          gets the bytes of that name         fetched(data)
    Train              trains on the device's examples     trained(result)
    Certify            gets an identity of the authority   certified(identity, now_s)
    SendReport         sends the body                      reported(Reported)
    SendStep           sends a message of a secure sum     taken(Taken), or reported(Reported) after the last
    AwaitStep          waits for what it leads to          told(Joined | bytes)
    SendAbandon        tells the server, once              abandoned()
    Finished           nothing more: the outcome is final

Where something fails it calls ``failed(error)``, and where the device may no longer train, ``stopped(reason)``.
In secure mode the steps of the sum take the place of ``SendReport``.

Laws: a call that the state does not expect raises StateError and changes nothing; the report's bytes are made exactly
once, and a retry sends the identical bytes (a second encoding under one mask would be a two-time pad).
"""

import os
from collections.abc import Callable, MutableSet
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from covey.device.effects import (
    CONDITION_LAPSED,
    WITHHELD,
    AwaitStep,
    Certify,
    Counted,
    Effect,
    FetchBlob,
    Finished,
    GaveUp,
    Lost,
    Outcome,
    SendAbandon,
    SendCheckIn,
    SendReport,
    SendStep,
    Train,
    Waiting,
)
from covey.device.policy import OwnerPolicy, check_assignment, check_offer
from covey.device.private import private_segments
from covey.device.trainer import LocalResult, TrainingJob
from covey.device.update import check_rings, drawn_structure, encoded_update, summed_integers
from covey.device.verified import Verified
from covey.plans.manifest import Manifest
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
from covey.wire.messages import SECURE_STEPS, Abandon, Assignment, CheckIn, ComeBack, Joined, Reported, Taken

if TYPE_CHECKING:
    from covey.device.secure import SecureReport
    from covey.secagg import Identity

__all__ = ["Session", "SessionState"]

Segments = dict[str, NDArray[np.floating]]


class SessionState(Enum):
    """Where a session stands: which call it expects next."""

    IDLE = "idle"
    CHECKING_IN = "checking_in"
    FETCHING_PLAN = "fetching_plan"
    FETCHING_CHECKPOINT = "fetching_checkpoint"
    FETCHING_SHARED = "fetching_shared"
    TRAINING = "training"
    CERTIFYING = "certifying"
    REPORTING = "reporting"
    SECURING = "securing"
    AWAITING = "awaiting"
    ABANDONING = "abandoning"
    FINISHED = "finished"


_SUMMING = (SessionState.REPORTING, SessionState.SECURING, SessionState.AWAITING)
_FETCHING = (SessionState.FETCHING_PLAN, SessionState.FETCHING_CHECKPOINT, SessionState.FETCHING_SHARED)


class Session:
    """The state machine. One object serves one session; not thread-safe."""

    def __init__(
        self,
        policy: OwnerPolicy,
        *,
        seed: bytes,
        verified: Verified | None = None,
        randomness: Callable[[int], bytes] = os.urandom,
        used_sums: MutableSet[bytes] | None = None,
        noise: Randomness | None = None,
    ) -> None:
        """Make a session that has not begun.

        Args:
            policy: what the device's owner accepts.
            seed: 32 bytes for the order of examples, for dropout and for rounding; on a device from the operating
                system.
            verified: what this process has already checked.
            randomness: returns that many unpredictable bytes, for keys and masks: the operating system's.
            used_sums: the secure sums that this device took part in; kept from session to session.
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
        self._randomness = randomness
        self._used_sums = set() if used_sums is None else used_sums
        self._secure: SecureReport | None = None

    @property
    def outcome(self) -> Outcome | None:
        """How the session ended, or None while it lasts."""
        return self._outcome if self.state is SessionState.FINISHED else None

    @property
    def plan(self) -> Plan | None:
        """The plan at hand, once it is verified."""
        return self._plan

    @property
    def num_examples(self) -> int:
        """How many of the device's examples the update stands on; 0 before it was trained."""
        return self._trained[0]

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
        self._trained = (result.num_examples, result.num_steps)
        try:
            if manifest.privacy.noise is not None:
                segments = private_segments(result, manifest, self.assignment, self._noise)
            if self.assignment.mode == "secure":
                return self._begin_sum(manifest, self.assignment, segments)
            body = encoded_update(manifest, self.assignment, segments, self._seed)
        except CoveyError as error:
            return self._give_up(error.code, error)
        self._params = {}
        return self._go(SessionState.REPORTING, SendReport(self.assignment.session, body))

    def certified(self, identity: "Identity", now_s: int) -> Effect:
        """Take an identity, and the time (seconds since 1970, by this device's clock) at which others' must be valid.

        Raises:
            StateError: no identity is wanted now.
        """
        self._expect(SessionState.CERTIFYING)
        assert self.assignment is not None
        assert self._secure is not None
        self._secure.certified(identity, now_s)
        return self._go(SessionState.SECURING, SendStep(self.assignment.session, "ready", b""))

    def taken(self, message: Taken) -> Effect:
        """Note that a message of the secure sum has arrived."""
        self._expect(SessionState.SECURING)
        assert isinstance(self._effect, SendStep)
        return self._go(SessionState.AWAITING, AwaitStep(self._effect.session, self._effect.step))

    def told(self, message: Joined | bytes) -> Effect:
        """Take what a step of the secure sum led to, and make the next message, once."""
        self._expect(SessionState.AWAITING)
        assert isinstance(self._effect, AwaitStep)
        assert self._secure is not None
        awaited = self._effect
        try:
            if isinstance(message, Joined):
                step, body = "advertise", self._secure.joined(message)
            else:
                step, body = self._secure.told(awaited.step, message)
        except CoveyError as error:
            return self._give_up(error.code, error)
        return self._go(SessionState.SECURING, SendStep(awaited.session, step, body))

    def reported(self, message: Reported) -> Effect:
        """Take the answer to the report, or to the last step of a secure sum."""
        last = isinstance(self._effect, SendStep) and self._effect.step == SECURE_STEPS[-1]
        self._expect(SessionState.REPORTING, *([SessionState.SECURING] if last else []))
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
        if self.state in _SUMMING and isinstance(error, AlreadyCountedError):
            return self._finish(self._counted(None))
        if isinstance(error, TransportError | BusyError):
            return self._effect
        if self.state is SessionState.CERTIFYING or (
            self.state in _FETCHING and not isinstance(error, SessionError | UnauthorizedError)
        ):
            return self._give_up(error.code, error)
        return self._finish(Lost(error))

    def stopped(self, reason: str = CONDITION_LAPSED, error: CoveyError | None = None) -> Effect:
        """End early: a condition lapsed or the time is up; or, with its last ``error``, the driver tried enough."""
        self._expect(*(s for s in SessionState if s is not SessionState.FINISHED))
        if self.state is SessionState.ABANDONING:
            return self.abandoned()
        if error is not None and self.state is SessionState.CERTIFYING:
            return self._give_up(error.code, error)  # the authority is away, not the server: the round need not wait
        if error is not None:
            return self._finish(Lost(error))
        if self.state in (SessionState.IDLE, SessionState.CHECKING_IN):
            return self._finish(GaveUp(reason, None))
        return self._give_up(reason, None)

    def _take_blob(self, assignment: Assignment, data: bytes) -> Effect:
        if self.state is SessionState.FETCHING_PLAN:
            plan = self._verified.plan(assignment.plan, data)
            check_assignment(self._policy, plan, assignment)
            check_rings(plan.manifest, assignment.phase)
            if assignment.mode == "secure":  # before training: a sum that this device would refuse is not worth it
                from covey.device.secure import sum_session  # devices in plain mode do without it

                sum_session(plan.manifest, assignment, self._policy.population, group=0)
            self._plan = plan
            return self._go(SessionState.FETCHING_CHECKPOINT, FetchBlob(assignment.checkpoint, "checkpoint"))
        assert self._plan is not None
        manifest = self._plan.manifest
        if self.state is SessionState.FETCHING_CHECKPOINT:
            self._params = self._verified.tensors(
                assignment.checkpoint, manifest.params, data, "checkpoint", download=manifest.download
            )
            if assignment.shared is not None:
                return self._go(SessionState.FETCHING_SHARED, FetchBlob(assignment.shared, "shared"))
            return self._train(self._plan, assignment, {})
        assert assignment.shared is not None
        specs = manifest.phases[assignment.phase].shared
        return self._train(self._plan, assignment, self._verified.tensors(assignment.shared, specs, data, "shared"))

    def _train(self, plan: Plan, assignment: Assignment, shared: Tensors) -> Effect:
        shared = {**shared, **drawn_structure(plan.manifest, assignment)}
        job = TrainingJob(plan, assignment.phase, self._params, shared, assignment.hyper, self._seed)
        within_s = min(plan.manifest.budget.time_s, assignment.report_within_s)
        return self._go(SessionState.TRAINING, Train(job, within_s))

    def _begin_sum(self, manifest: Manifest, assignment: Assignment, values: Segments) -> Effect:
        from covey.device.secure import SecureReport

        self._params = {}
        self._secure = SecureReport(
            manifest,
            assignment,
            self._policy.population,
            summed_integers(manifest, assignment, values, self._seed),
            randomness=self._randomness,
            used_sums=self._used_sums,
        )
        if self._secure.is_active:
            return self._go(SessionState.CERTIFYING, Certify())
        return self._go(SessionState.SECURING, SendStep(assignment.session, "ready", b""))

    def _drop_secrets(self) -> None:
        if self._secure is not None:
            self._secure.leave()
            self._secure = None

    def _counted(self, retry_after_s: float | None) -> Counted:
        assert self.assignment is not None
        return Counted(self.assignment.round, *self._trained, retry_after_s)

    def _give_up(self, reason: str, error: CoveyError | None) -> Effect:
        assert self.assignment is not None
        private = self._plan is not None and self._plan.manifest.privacy.noise is not None
        # What failed in training depends on the examples: under differential privacy nobody is told without noise.
        told = WITHHELD if private and error is not None and self.state is SessionState.TRAINING else reason
        self._outcome, self._params = GaveUp(reason, error), {}
        self._drop_secrets()
        return self._go(SessionState.ABANDONING, SendAbandon(self.assignment.session, Abandon(reason=told)))

    def _finish(self, outcome: Outcome) -> Effect:
        self._outcome, self._params, self._plan = outcome, {}, None
        self._drop_secrets()
        return self._go(SessionState.FINISHED, Finished(outcome))

    def _go(self, state: SessionState, effect: Effect) -> Effect:
        self.state, self._effect = state, effect
        return effect

    def _expect(self, *states: SessionState) -> None:
        if self.state not in states:
            expected = " or ".join(s.value for s in states)
            raise StateError("session", expected=f"a call in {expected}", got=f"one in {self.state.value}")
