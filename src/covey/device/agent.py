"""The device agent: enroll, check in, run sessions, wait as the server says, and stop cleanly.

One agent serves one population. :class:`covey.device.scheduler.Scheduler` lets those of a device take turns; an
application may also run one by itself. A server that is away, restarted or out of room costs at most the session at
hand. Several agents may run as threads of one process, each with a state directory of its own, and share one trainer.
"""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from covey.device.account import Account
from covey.device.choices import Choices
from covey.device.clock import SystemClock
from covey.device.conditions.conditions import Conditions, Verdict
from covey.device.conditions.unmetered import is_on_this_device
from covey.device.driver import Driver, Parts
from covey.device.effects import Counted, GaveUp, Lost, Outcome, Waiting
from covey.device.events import AgentEvent, AgentSummary, Tell, silent
from covey.device.gate import Gate, always
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.pace import Pace
from covey.device.policy import OwnerPolicy
from covey.device.recorder import Recorder
from covey.device.tokens import no_tokens
from covey.device.trainer import OnnxTrainer, Trainer
from covey.device.transport import HttpTransport, Transport
from covey.device.verified import Verified
from covey.types.clock import DeviceClock
from covey.types.errors import CoveyError, NotFoundError, StateError, UsageError, VersionError

if TYPE_CHECKING:
    from covey.device.authority import PinnedAuthority

__all__ = ["AgentEvent", "AgentSummary", "DeviceAgent"]

PERMANENT = (NotFoundError, UsageError, VersionError)
"""Errors that waiting does not cure: no such population, a protocol that this version does not speak."""


class DeviceAgent:
    """One population on one device. An agent runs once; :meth:`stop` ends the run."""

    def __init__(
        self,
        home: DeviceHome,
        server_url: str,
        policy: OwnerPolicy,
        *,
        ca_file: Path | None = None,
        trainer: Trainer | None = None,
        transport: Transport | None = None,
        conditions: Conditions | None = None,
        may_train: Callable[[], bool] = always,
        on_event: Tell = silent,
        pace: Pace | None = None,
        clock: DeviceClock | None = None,
        verified: Verified | None = None,
        chance: random.Random | None = None,
        authority: "PinnedAuthority | None" = None,
        attestation: Callable[[], str] = no_tokens,
    ) -> None:
        """Prepare an agent; nothing is sent yet.

        Args:
            home: the open state directory; the caller closes it after :meth:`run`.
            server_url: ``https://host:port``.
            policy: what the owner accepts; names the population.
            ca_file: the authority to trust; None: the system's.
            trainer: shared by the agents of one process; None: an :class:`OnnxTrainer` of its own.
            transport: instead of HTTPS to ``server_url``.
            conditions: idle, charging, unmetered and the rest; the caller closes them. None: ``may_train`` says it all.
            may_train: the application's own word, besides; asked often, must be quick.
            on_event: gets every event, in the agent's thread.
            pace: how to wait.
            clock: where the time comes from.
            verified: plans that this process has already checked.
            chance: source of jitter.
            authority: where identities come from, for plans against an active server; ``policy`` pins its key.
            attestation: returns the proof of being a device of the application, for the server.

        Raises:
            UsageError: a bad address or certificate file.
            StorageError, StorageFullError: the device's ledger cannot be read and written.
        """
        self.summary = AgentSummary()
        self.population = policy.population
        self._clock = clock or SystemClock()
        self._pace = pace or Pace()
        self._chance = chance or random.Random()
        self._on_event = on_event
        self._stopping = threading.Event()
        self._transport = transport or HttpTransport(server_url, ca_file)
        self._authority = authority
        account = Account(
            home, server_url, self.population, self._transport, self._clock, self._enrolled, attestation=attestation
        )
        self._gate = Gate(
            self.population,
            self._clock,
            conditions=conditions,
            choices=Choices.of_home(home.path),
            may_train=may_train,
            over_network=not is_on_this_device(server_url),
        )
        self._parts = Parts(
            home=home,
            policy=policy,
            transport=self._transport,
            account=account,
            authority=authority,
            trainer=trainer or OnnxTrainer(within_budget=True),
            gate=self._gate,
            recorder=Recorder(Ledger.of_home(home.path), self.population, self._clock),
            clock=self._clock,
            pace=self._pace,
            chance=self._chance,
            verified=verified or Verified(),
            stopping=self._stopping,
            summary=self.summary,
            tell=on_event,
        )
        self._num_failures = 0
        self._held: tuple[str, ...] = ()
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
                pause_s = self.turn(once=once)
                if once and self.summary.counted:
                    break
                self._clock.wait(self._stopping, pause_s)
            if self._stopping.is_set():
                self._tell("stopped", "stopped")
            return self.summary
        finally:
            self.close()

    def turn(self, *, once: bool = False) -> float:
        """Run one session if the device may train now; return for how many seconds to leave the server alone.

        Raises:
            NotFoundError, VersionError: waiting does not cure it.
            CoveyError: with ``once``, an error of this device's own.
        """
        verdict = self._gate.check()
        self._tell_held(verdict)
        if not verdict.holds:
            return self._pace.conditions_s
        return self._settle(Driver(self._parts).run(), once)

    def close(self) -> None:
        """Close the connection."""
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
                if isinstance(error, PERMANENT):
                    raise error
                return self._failure_pause(error)

    def _failure_pause(self, error: CoveyError | None) -> float:
        self._num_failures += 1
        pause_s = self._pace.after_failure(self._num_failures, self._chance)
        return max(pause_s, self._pace.as_asked(error.retry_after_s if error else 0.0, self._chance))

    def _tell_held(self, verdict: Verdict) -> None:
        """Say what keeps the device from training, whenever that changes."""
        if verdict.lapsed and verdict.lapsed != self._held:
            self._tell("held", f"waits; {'; '.join(verdict.hints)}")
        self._held = verdict.lapsed

    def _enrolled(self) -> None:
        self._tell("enrolled", f"enrolled with population {self.population!r}")

    def _tell(
        self, kind: str, text: str, number: int = 0, error: CoveyError | None = None, *, num_steps: int = 0
    ) -> None:
        self._on_event(AgentEvent(kind, text, number, error, num_steps, self.population))
