"""Carries out what a :class:`covey.device.session.Session` asks for, over a transport, a home and a trainer.

Laws: nothing leaves before the ledger says so; a retry sends the identical bytes; every wait ends at a deadline on a
clock that goes on while the machine sleeps.
"""

import contextlib
import os
import random
from collections.abc import Generator, MutableSet
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from covey.device.account import Account
from covey.device.effects import (
    CONDITION_LAPSED,
    TIME_IS_UP,
    AwaitStep,
    Certify,
    Counted,
    Effect,
    FetchBlob,
    Finished,
    GaveUp,
    Outcome,
    SendAbandon,
    SendCheckIn,
    SendReport,
    SendStep,
    Train,
)
from covey.device.events import AgentEvent, AgentSummary, Tell
from covey.device.gate import Gate
from covey.device.home import DeviceHome
from covey.device.kept import KeptState
from covey.device.pace import Pace
from covey.device.policy import OwnerPolicy
from covey.device.recorder import Recorder
from covey.device.session import Session
from covey.device.trainer import Trainer, TrainingJob, TrainingStopped
from covey.device.transport import Transport
from covey.device.verified import Verified
from covey.plans.manifest import PERSONAL
from covey.privacy.randomness import AesCtr
from covey.types.clock import DeviceClock, Wakeable
from covey.types.errors import CoveyError, EnrolmentError, StorageError
from covey.wire.messages import BlobRef, Reported

if TYPE_CHECKING:
    from covey.device.authority import PinnedAuthority
    from covey.secagg import Identity

__all__ = ["Driver", "Parts"]

SUM_S = 300.0
"""How long a device goes on waiting for a secure sum after its round should have closed."""

_LEAVES = "mask"
"""The step of a secure sum with which the update, masked, leaves the device."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What sessions of one population share.

    ``authority`` certifies identities, for plans against an active server; ``used_sums`` are the secure sums that this
    device took part in.
    """

    home: DeviceHome
    policy: OwnerPolicy
    transport: Transport
    account: Account
    trainer: Trainer
    gate: Gate
    recorder: Recorder
    clock: DeviceClock
    pace: Pace
    chance: random.Random
    verified: Verified
    stopping: Wakeable
    summary: AgentSummary
    tell: Tell
    authority: "PinnedAuthority | None" = None
    used_sums: MutableSet[bytes] = field(default_factory=set)


class Driver:
    """One session, from the check-in to its outcome."""

    def __init__(self, parts: Parts) -> None:
        """Prepare a session; nothing is sent yet."""
        self._parts = parts
        self._session = Session(
            parts.policy,
            seed=os.urandom(32),
            verified=parts.verified,
            noise=AesCtr(os.urandom(32), private=True),
            used_sums=parts.used_sums,
        )
        self._kept = KeptState(parts.home.path / "kept", parts.policy.population)
        self._deadline_s, self._num_tries, self._bytes_down = float("inf"), 0, 0

    def run(self) -> Outcome:
        """Run the session to its end.

        Raises:
            KeyboardInterrupt: passed on, after the server was told that the session is over.
        """
        effect = self._session.start()
        try:
            while not isinstance(effect, Finished):
                effect = self._after(effect)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        if (given := self._session.assignment) is not None:
            self._keep(effect.outcome)
            self._record_end(effect.outcome)
            with contextlib.suppress(StorageError):  # what cannot be deleted now may be after the next session
                self._parts.home.blobs.trim({given.plan.sha256, given.checkpoint.sha256})
        return effect.outcome

    def _after(self, effect: Effect) -> Effect:
        """Carry out one effect; return the next, which is the same one where it has to be tried again."""
        session, parts = self._session, self._parts
        is_last_word = isinstance(effect, SendAbandon)
        try:
            if parts.stopping.is_set() and not is_last_word:
                after = session.stopped()
            elif self._is_late() and not is_last_word:
                after = session.stopped(TIME_IS_UP)  # after a sleep, or while waiting for a secure sum
            else:
                after = self._carry_out(effect)
        except CoveyError as error:
            after = session.failed(error)
            self._num_tries = self._num_tries + 1 if after is effect else 0
            return self._try_again(effect, error) if after is effect else after
        self._num_tries = 0
        if isinstance(effect, SendCheckIn) and (given := session.assignment) is not None:
            self._deadline_s = parts.clock.elapsed_s() + given.report_within_s
            parts.recorder.assigned(given)
            self._tell("assigned", f"round {given.round}: selected")
        return after

    def _is_late(self) -> bool:
        return self._parts.clock.elapsed_s() > self._deadline_s + SUM_S

    def _carry_out(self, effect: Effect) -> Effect:
        session, parts = self._session, self._parts
        authorized, transport, summary = parts.account.authorized, parts.transport, parts.summary
        match effect:
            case SendCheckIn(message=check_in):
                return session.answered(authorized(lambda bearer: transport.check_in(check_in, bearer)))
            case FetchBlob(ref=ref):
                self._know_plan()
                return session.fetched(self._blob(ref)) if self._may_go_on() else session.stopped()
            case Train():
                return self._train(effect)
            case Certify():
                now_s = int(parts.clock.now_s())
                return session.certified(self._identity(now_s), now_s)
            case SendReport(session=name, body=body):
                if not self._may_go_on():
                    return session.stopped()
                self._record_sending(body)
                reported = authorized(lambda bearer: transport.report(name, body, bearer))
                summary.bytes_up += len(body)
                return session.reported(reported)
            case SendStep(session=name, step=step, body=body):
                if not self._may_go_on():
                    return session.stopped()
                if step == _LEAVES:
                    self._record_sending(body)
                answer = authorized(lambda bearer: transport.send_step(name, step, body, bearer))
                summary.bytes_up += len(body)
                return session.reported(answer) if isinstance(answer, Reported) else session.taken(answer)
            case AwaitStep(session=name, step=step):
                told = authorized(lambda bearer: transport.await_step(name, step, bearer))
                if told is None:
                    return effect if self._may_go_on() else session.stopped()
                self._came(len(told) if isinstance(told, bytes) else 0)
                return session.told(told)
            case SendAbandon(session=name, message=abandon):
                authorized(lambda bearer: transport.abandon(name, abandon, bearer))
                return session.abandoned()
            case Finished():
                return effect

    def _identity(self, now_s: int) -> "Identity":
        if self._parts.authority is None:
            raise EnrolmentError("identity", expected="an enrolment authority to ask", got="only its key")
        return self._parts.authority.identity(now_s)

    def _may_go_on(self) -> bool:
        return self._parts.gate.is_open()

    def _know_plan(self) -> None:
        """Once the plan is verified: take over its conditions, and write that the session begins."""
        if (plan := self._session.plan) is not None:
            self._parts.gate.needs = plan.manifest.eligibility
            self._parts.recorder.started(plan.manifest)

    def _record_sending(self, body: bytes) -> None:
        self._parts.recorder.sending(body, self._session.num_examples, self._bytes_down)

    def _record_end(self, outcome: Outcome) -> None:
        try:
            self._parts.recorder.ended(outcome)
        except StorageError as error:  # what was sent stands in it; the next session finds out whether it works again
            self._tell("lost", f"the ledger could not be written: {error}", error)

    def _keep(self, outcome: Outcome) -> None:
        """Store what the algorithm keeps on the device, where the update was counted."""
        try:
            self._kept.ended(counted=isinstance(outcome, Counted))
        except StorageError as error:
            self._tell("not_kept", f"the algorithm's own state could not be stored: {error}", error)

    def _train(self, effect: Train) -> Effect:
        session, parts = self._session, self._parts
        manifest = effect.job.plan.manifest
        examples = parts.home.examples.query(manifest.examples, at_most=manifest.max_examples)
        self._tell("training", f"round {self._round}: training {manifest.task}")
        until_s = parts.clock.elapsed_s() + effect.within_s

        def should_stop() -> bool:
            return parts.stopping.is_set() or parts.clock.elapsed_s() > until_s or not parts.gate.is_open()

        try:
            job = self._with_personal(self._kept.given(effect.job))
            return session.trained(self._kept.trained(job, parts.trainer.run(job, examples, should_stop)))
        except TrainingStopped:
            return session.stopped(TIME_IS_UP if parts.clock.elapsed_s() > until_s else CONDITION_LAPSED)

    def _with_personal(self, job: TrainingJob) -> TrainingJob:
        """Return the job with the tuned model that this device uses, where an evaluation is against it."""
        manifest = job.plan.manifest
        if manifest.phases[job.phase].against != PERSONAL:
            return job
        from covey.device.released import ReleaseStore
        from covey.device.tuned import personal_params

        policy = self._parts.policy
        store = ReleaseStore(
            self._parts.home.path, policy.owner_key, policy.population,
            max_memory_bytes=policy.max_memory_bytes, verified=self._parts.verified,
        )  # fmt: skip
        return replace(job, personal=personal_params(store, manifest))

    def _blob(self, ref: BlobRef) -> bytes:
        """Return a blob from the cache, or download it, or the rest of it."""
        blobs, transport = self._parts.home.blobs, self._parts.transport
        if (known := blobs.get(ref)) is not None:
            return known

        def fetch(start: int, bearer: str) -> Generator[bytes, None, None]:
            with closing(transport.fetch(ref, bearer, start)) as chunks:
                for chunk in chunks:
                    self._came(len(chunk))
                    yield chunk

        return self._parts.account.authorized(lambda bearer: blobs.download(ref, lambda start: fetch(start, bearer)))

    def _try_again(self, effect: Effect, error: CoveyError) -> Effect:
        """Wait after a transport failure and return the same effect; or end the session if that is of no use."""
        session, parts = self._session, self._parts
        if parts.stopping.is_set():  # the connection was cut here, to wake this thread
            return session.stopped()
        pause_s = max(
            parts.pace.after_failure(self._num_tries, parts.chance),
            parts.pace.as_asked(error.retry_after_s, parts.chance),
        )
        if parts.clock.elapsed_s() + pause_s > self._deadline_s:
            return session.stopped(error=error)
        self._tell("retrying", f"{error}; trying again in {pause_s:.1f} s", error)
        parts.clock.wait(parts.stopping, pause_s)
        return effect if self._may_go_on() else session.stopped()

    def _interrupted(self) -> None:
        """Tell the server, once and quickly, that the session is over."""
        session, parts = self._session, self._parts
        if session.outcome is not None or not parts.account.bearer:
            return
        effect = session.stopped()
        if session.assignment is not None:
            self._record_end(GaveUp(CONDITION_LAPSED, None))
        if isinstance(effect, SendAbandon):
            parts.transport.abort()  # from here on only an abandon passes, and it has to be quick
            with contextlib.suppress(CoveyError):  # the server's deadline finds out as well
                parts.transport.abandon(effect.session, effect.message, parts.account.bearer)

    @property
    def _round(self) -> int:
        return self._session.assignment.round if self._session.assignment else 0

    def _came(self, num_bytes: int) -> None:
        self._bytes_down += num_bytes
        self._parts.summary.bytes_down += num_bytes

    def _tell(self, kind: str, text: str, error: CoveyError | None = None) -> None:
        self._parts.tell(AgentEvent(kind, text, self._round, error, population=self._parts.policy.population))
