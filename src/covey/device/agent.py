"""The device agent: enroll, check in, run sessions, wait as the server says, and stop cleanly.

The agent carries out the effects of :class:`covey.device.session.Session` over a :class:`Transport`. A server that is
away, restarted or out of room costs at most the session at hand. Several agents may run as threads of one process,
each with a state directory of its own, and share one trainer.
"""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from covey.device.authority import PinnedAuthority
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
    Lost,
    Outcome,
    SendAbandon,
    SendCheckIn,
    SendReport,
    SendStep,
    Train,
    Waiting,
)
from covey.device.home import Credential, DeviceHome
from covey.device.pace import Pace
from covey.device.policy import OwnerPolicy
from covey.device.session import Session
from covey.device.trainer import OnnxTrainer, Trainer, TrainingStopped
from covey.device.transport import HttpTransport, Transport
from covey.device.verified import Verified
from covey.privacy.randomness import AesCtr
from covey.secagg import Identity
from covey.types.errors import (
    CoveyError,
    EnrolmentError,
    NotFoundError,
    StateError,
    UnauthorizedError,
    UsageError,
    VersionError,
)
from covey.wire.messages import BlobRef, Enroll, Reported

__all__ = ["AgentEvent", "AgentSummary", "DeviceAgent"]

T = TypeVar("T")

_PERMANENT = (NotFoundError, UsageError, VersionError)
"""Errors that waiting does not cure: no such population, a protocol that this version does not speak."""

_SUM_S = 300.0
"""How long a device goes on waiting for a secure sum after its round should have closed."""

_LIFETIME_USED = 0.9
"""A credential is renewed after this fraction of its lifetime, before the server refuses it."""


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something worth a line of progress.

    ``kind``: ``enrolled``, ``waiting``, ``assigned``, ``training``, ``counted``, ``gave_up``, ``lost``, ``retrying``,
    ``stopped``. ``round`` is 0 where no round is at hand; ``error`` is set where there is one; ``num_steps`` are those
    of an update that was counted.
    """

    kind: str
    text: str
    round: int = 0
    error: CoveyError | None = None
    num_steps: int = 0


@dataclass(slots=True)
class AgentSummary:
    """What an agent did: sessions that were counted, gave up or were lost, and payload bytes in both directions."""

    counted: int = 0
    gave_up: int = 0
    lost: int = 0
    bytes_down: int = 0
    bytes_up: int = 0


def _always() -> bool:
    return True


def _nothing() -> str:
    return ""


def _silent(event: AgentEvent) -> None:
    pass


class DeviceAgent:
    """One device. An agent runs once; :meth:`stop` ends the run."""

    def __init__(
        self,
        home: DeviceHome,
        server_url: str,
        policy: OwnerPolicy,
        *,
        ca_file: Path | None = None,
        trainer: Trainer | None = None,
        transport: Transport | None = None,
        may_train: Callable[[], bool] = _always,
        on_event: Callable[[AgentEvent], None] = _silent,
        pace: Pace | None = None,
        verified: Verified | None = None,
        chance: random.Random | None = None,
        authority: PinnedAuthority | None = None,
        attestation: Callable[[], str] = _nothing,
    ) -> None:
        """Prepare an agent; nothing is sent yet.

        Args:
            home: the open state directory; the caller closes it after :meth:`run`.
            server_url: ``https://host:port``.
            policy: what the owner accepts; names the population.
            ca_file: the authority to trust; None: the system's.
            trainer: shared by the agents of one process; None: an :class:`OnnxTrainer` of its own.
            transport: instead of HTTPS to ``server_url``.
            may_train: whether the conditions (idle, charging, unmetered) hold now; asked often, must be quick.
            on_event: gets every event, in the agent's thread.
            pace: how to wait.
            verified: plans that this process has already checked.
            chance: source of jitter.
            authority: where identities come from, for plans against an active server; ``policy`` pins its key.
            attestation: returns the proof of being a device of the application, for the server.

        Raises:
            UsageError: a bad address or certificate file.
        """
        self.summary = AgentSummary()
        self._home = home
        self._server = server_url
        self._policy = policy
        self._trainer = trainer or OnnxTrainer()
        self._transport = transport or HttpTransport(server_url, ca_file)
        self._may_train = may_train
        self._on_event = on_event
        self._pace = pace or Pace()
        self._verified = verified or Verified()
        self._chance = chance or random.Random()
        self._authority = authority
        self._attestation = attestation
        self._stopping = threading.Event()
        self._credential: Credential | None = None
        self._num_failures = 0
        self._used_sums: set[bytes] = set()
        self._has_run = False

    def stop(self) -> None:
        """End the run soon: between two chunks of training, or now if the agent waits. From any thread."""
        self._stopping.set()
        self._transport.abort()
        if self._authority is not None:
            self._authority.abort()

    def run(self, *, once: bool = False) -> AgentSummary:
        """Serve the population until :meth:`stop`, or, with ``once``, until one update was counted.

        With ``once``, an error of this device's own (its plan, data, training, disk) is raised instead of waited out.

        Raises:
            NotFoundError, VersionError: waiting does not cure it.
            StateError: it ran before; its connection is closed.
            KeyboardInterrupt: passed on, after the server was told that the session at hand is over.
        """
        if self._has_run:
            raise StateError("agent", expected="one run", got="a second", hint="make a new agent")
        self._has_run = True
        try:
            while not self._stopping.is_set():
                if not self._may_train():
                    self._stopping.wait(self._pace.conditions_s)
                    continue
                outcome = self._session()
                pause_s = self._settle(outcome, once)
                if once and isinstance(outcome, Counted):
                    break
                self._stopping.wait(pause_s)
            if self._stopping.is_set():
                self._tell("stopped", "stopped")
            return self.summary
        finally:
            self._transport.close()

    def _settle(self, outcome: Outcome, once: bool) -> float:
        """Count an outcome, tell of it, and return how long to pause."""
        match outcome:
            case Counted(round=number, num_examples=examples, num_steps=steps, retry_after_s=after_s):
                self._num_failures = 0
                self.summary.counted += 1
                self._tell(
                    "counted", f"round {number}: counted {examples} examples, {steps} steps", number, num_steps=steps
                )
                return self._pace.as_asked(self._pace.first_s if after_s is None else after_s, self._chance)
            case Waiting(reason=reason, retry_after_s=after_s):
                self._num_failures = 0
                pause_s = self._pace.as_asked(after_s, self._chance)
                self._tell("waiting", f"{reason}: back in {pause_s:.1f} s")
                return pause_s
            case GaveUp(reason=reason, error=error):
                self.summary.gave_up += 1
                if error is not None or not self._stopping.is_set():  # else "stopped" says it all
                    self._tell("gave_up", str(error or reason), error=error)
                if once and error is not None:
                    raise error
                return self._failure_pause(error)
            case Lost(error=error):
                self.summary.lost += 1
                self._tell("lost", str(error), error=error)
                if isinstance(error, _PERMANENT):
                    raise error
                return self._failure_pause(error)

    def _session(self) -> Outcome:
        """Run one session to its end."""
        noise = AesCtr(os.urandom(32), private=True)
        session = Session(
            self._policy, seed=os.urandom(32), verified=self._verified, noise=noise, used_sums=self._used_sums
        )
        try:
            outcome = self._drive(session)
        except KeyboardInterrupt:
            self._interrupted(session)
            raise
        if session.assignment is not None:
            self._home.keep_only({session.assignment.plan.sha256, session.assignment.checkpoint.sha256})
        return outcome

    def _drive(self, session: Session) -> Outcome:
        """Carry out one effect after the other."""
        effect = session.start()
        deadline_s, num_tries = float("inf"), 0
        while not isinstance(effect, Finished):
            try:
                if self._stopping.is_set() and not isinstance(effect, SendAbandon):
                    after = session.stopped()
                else:
                    after = self._carry_out(session, effect)
            except CoveyError as error:
                after = session.failed(error)
                num_tries = num_tries + 1 if after is effect else 0
                if after is effect:
                    after = self._try_again(session, effect, error, num_tries, deadline_s)
            else:
                num_tries = 0
                if after is effect and time.monotonic() > deadline_s + _SUM_S:
                    after = session.stopped(TIME_IS_UP)  # it still waits for a secure sum: nothing waits for ever
            if isinstance(effect, SendCheckIn) and (given := session.assignment) is not None:
                deadline_s = time.monotonic() + given.report_within_s
                self._tell("assigned", f"round {given.round}: selected", given.round)
            effect = after
        return effect.outcome

    def _carry_out(self, session: Session, effect: Effect) -> Effect:
        match effect:
            case SendCheckIn(message=check_in):
                return session.answered(self._authorized(lambda bearer: self._transport.check_in(check_in, bearer)))
            case FetchBlob(ref=ref):
                return session.fetched(self._blob(ref))
            case Train():
                return self._train(session, effect)
            case Certify():
                return session.certified(self._identity(), int(time.time()))
            case SendReport(session=name, body=body):
                reported = self._authorized(lambda bearer: self._transport.report(name, body, bearer))
                self.summary.bytes_up += len(body)
                return session.reported(reported)
            case SendStep(session=name, step=step, body=body):
                answer = self._authorized(lambda bearer: self._transport.send_step(name, step, body, bearer))
                self.summary.bytes_up += len(body)
                return session.reported(answer) if isinstance(answer, Reported) else session.taken(answer)
            case AwaitStep(session=name, step=step):
                told = self._authorized(lambda bearer: self._transport.await_step(name, step, bearer))
                if told is None:
                    return effect if self._may_train() else session.stopped()
                self.summary.bytes_down += len(told) if isinstance(told, bytes) else 0
                return session.told(told)
            case SendAbandon(session=name, message=abandon):
                self._authorized(lambda bearer: self._transport.abandon(name, abandon, bearer))
                return session.abandoned()
            case Finished():
                return effect

    def _train(self, session: Session, effect: Train) -> Effect:
        manifest, number = effect.job.plan.manifest, session.assignment.round if session.assignment else 0
        examples = self._home.examples.query(manifest.examples, at_most=manifest.max_examples)
        self._tell("training", f"round {number}: training {manifest.task}", number)
        until_s = time.monotonic() + effect.within_s

        def should_stop() -> bool:
            return self._stopping.is_set() or time.monotonic() > until_s or not self._may_train()

        try:
            return session.trained(self._trainer.run(effect.job, examples, should_stop))
        except TrainingStopped:
            return session.stopped(TIME_IS_UP if time.monotonic() > until_s else CONDITION_LAPSED)

    def _identity(self) -> Identity:
        if self._authority is None:
            raise EnrolmentError("identity", expected="an enrolment authority to ask", got="only its key")
        return self._authority.identity(int(time.time()))

    def _blob(self, ref: BlobRef) -> bytes:
        """Return a blob from the cache, or download it."""
        if (known := self._home.blob(ref)) is not None:
            return known

        def download(bearer: str) -> bytes:
            with closing(self._transport.fetch(ref, bearer)) as chunks:
                return self._home.save_blob(ref, chunks)

        data = self._authorized(download)
        self.summary.bytes_down += len(data)
        return data

    def _authorized(self, send: Callable[[str], T]) -> T:
        """Call ``send`` with a credential; with a new one if the server does not accept the first any more."""
        try:
            return send(self._bearer())
        except UnauthorizedError:
            self._credential = None
            self._home.forget_credential()
            return send(self._bearer())

    def _bearer(self) -> str:
        population = self._policy.population
        known = self._credential or self._home.credential(self._server, population)
        if known is None or known.renew_at_s < time.time():
            answer = self._transport.enroll(Enroll(population=population, attestation=self._attestation()))
            known = Credential(
                server=self._server,
                population=population,
                bearer=answer.credential,
                renew_at_s=time.time() + _LIFETIME_USED * answer.expires_in_s,
            )
            self._credential = known
            self._home.save_credential(known)
            self._tell("enrolled", f"enrolled with population {population!r}")
        self._credential = known
        return known.bearer

    def _try_again(
        self, session: Session, effect: Effect, error: CoveyError, num_tries: int, deadline_s: float
    ) -> Effect:
        """Wait after a transport failure and return the same effect; or end the session if that is of no use."""
        if self._stopping.is_set():  # the connection was cut here, to wake this thread
            return session.stopped()
        pause_s = max(
            self._pace.after_failure(num_tries, self._chance), self._pace.as_asked(error.retry_after_s, self._chance)
        )
        if time.monotonic() + pause_s > deadline_s:
            return session.stopped(error=error)
        number = session.assignment.round if session.assignment else 0
        self._tell("retrying", f"{error}; trying again in {pause_s:.1f} s", number, error)
        self._stopping.wait(pause_s)
        return effect if self._may_train() else session.stopped()

    def _interrupted(self, session: Session) -> None:
        """Tell the server, once and quickly, that the session is over."""
        if session.outcome is not None or self._credential is None:
            return
        effect = session.stopped()
        if isinstance(effect, SendAbandon):
            self._transport.abort()  # from here on only an abandon passes, and it has to be quick
            with contextlib.suppress(CoveyError):  # the server's deadline finds out as well
                self._transport.abandon(effect.session, effect.message, self._credential.bearer)

    def _failure_pause(self, error: CoveyError | None) -> float:
        self._num_failures += 1
        pause_s = self._pace.after_failure(self._num_failures, self._chance)
        return max(pause_s, self._pace.as_asked(error.retry_after_s if error else 0.0, self._chance))

    def _tell(
        self, kind: str, text: str, number: int = 0, error: CoveyError | None = None, *, num_steps: int = 0
    ) -> None:
        self._on_event(AgentEvent(kind, text, number, error, num_steps))
