"""One agent for all populations of a device: they take turns, each when its server asked for it, never two at once.

When a population is due stands in ``HOME/schedule.json``, so that a device that was restarted does not come back before
the time that a server gave it. While it runs only the clock that nobody sets counts.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from covey.device.agent import PERMANENT, DeviceAgent
from covey.device.clock import SystemClock
from covey.device.events import AgentEvent, Tell, silent
from covey.device.files import storage_errors, written_whole
from covey.types.clock import DeviceClock
from covey.types.errors import CoveyError, StateError, UsageError

__all__ = ["Schedule", "Scheduler"]

PERMANENT_S = 3600.0
"""How long to leave alone a server that does not know the population, or speaks another protocol."""

_WORTH_KEEPING_S = 30.0
_MOST_KEPT_S = 1.2 * 86_400.0


class Schedule:
    """When each population is due, across restarts. What cannot be read or written is as if nothing was known."""

    def __init__(self, home: Path, clock: DeviceClock) -> None:
        """Name the file of a state directory; it is made when there is something to keep."""
        self._path = home / "schedule.json"
        self._clock = clock

    def pauses_s(self) -> dict[str, float]:
        """Return for how many seconds each population is still to be left alone: a day or so at most."""
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        now_s = self._clock.now_s()
        # A date that was wrong then, or is now, must not keep a device away for ever.
        return {name: min(max(at_s - now_s, 0.0), _MOST_KEPT_S) for name, at_s in known.items()}

    def keep(self, pauses_s: dict[str, float]) -> None:
        """Remember them.

        Raises:
            StorageError, StorageFullError: it could not be written; the former state is still there.
        """
        now_s = self._clock.now_s()
        with storage_errors("schedule"), written_whole(self._path) as file:
            file.write(msgspec.json.encode({name: now_s + s for name, s in pauses_s.items()}))


class Scheduler:
    """Lets agents take turns in one thread. It runs once; :meth:`stop` ends the run."""

    def __init__(
        self,
        agents: Sequence[DeviceAgent],
        *,
        schedule: Schedule | None = None,
        clock: DeviceClock | None = None,
        on_event: Tell = silent,
    ) -> None:
        """Prepare.

        Args:
            agents: one for each population, all of one home.
            schedule: what is remembered across restarts; None: nothing.
            clock: the agents' own.
            on_event: is told what the scheduler itself does.

        Raises:
            UsageError: no agent, or two for one population.
        """
        names = [a.population for a in agents]
        if not names or len(set(names)) < len(names):
            raise UsageError("populations", expected="at least one, each once", got=", ".join(names) or "none")
        self._agents = tuple(agents)
        self._schedule = schedule
        self._clock = clock or SystemClock()
        self._tell = on_event
        self._stopping = threading.Event()
        self._has_run = False

    def stop(self) -> None:
        """End the run soon, telling the server if a session is at hand. From any thread."""
        self._stopping.set()
        for agent in self._agents:
            agent.stop()

    def run(self) -> None:
        """Serve all populations until :meth:`stop`.

        Raises:
            StateError: it ran before.
        """
        if self._has_run:
            raise StateError("scheduler", expected="one run", got="a second", hint="make a new one")
        self._has_run = True
        start_s = self._clock.elapsed_s()
        pauses_s = self._schedule.pauses_s() if self._schedule else {}
        due_s = {a: start_s + pauses_s.get(a.population, 0.0) for a in self._agents}
        try:
            while not self._stopping.is_set():
                agent = min(self._agents, key=due_s.__getitem__)
                if (left_s := due_s[agent] - self._clock.elapsed_s()) > 0:
                    self._clock.wait(self._stopping, left_s)
                    continue
                pause_s = self._turn(agent)
                due_s[agent] = self._clock.elapsed_s() + pause_s
                if pause_s >= _WORTH_KEEPING_S:
                    self._keep({a.population: at_s - self._clock.elapsed_s() for a, at_s in due_s.items()})
            self._tell(AgentEvent("stopped", "stopped"))
        finally:
            for agent in self._agents:
                agent.close()

    def _turn(self, agent: DeviceAgent) -> float:
        """Let one population have its turn; the errors of one are no reason to stop the others."""
        try:
            return agent.turn()
        except PERMANENT as error:
            hint = f"{error}; asking again in {PERMANENT_S / 60:.0f} minutes"
            self._tell(AgentEvent("lost", hint, error=error, population=agent.population))
            return PERMANENT_S

    def _keep(self, pauses_s: dict[str, float]) -> None:
        if self._schedule is None:
            return
        try:
            self._schedule.keep(pauses_s)
        except CoveyError as error:  # a full disk: the device comes back early, once
            self._tell(AgentEvent("lost", f"{error}", error=error))
