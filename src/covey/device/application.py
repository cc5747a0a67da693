"""The device in an application's hands: store what the person did, ask the model, and take part while nobody minds.

::

    with Application(home, "https://fl.example:8443", policy) as app:
        app.examples.declare(SCHEMA)
        app.examples.add("typed", {"x": context, "y": character})
        app.model.predict({"x": context})

A thread of low importance serves the population: it trains only while the device's conditions hold, fetches each new
release, and tunes a personal model after a session that counted. The application itself never waits for the network.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from covey.device.agent import AgentEvent, DeviceAgent
from covey.device.choices import Choices
from covey.device.clock import SystemClock
from covey.device.conditions.conditions import Conditions
from covey.device.conditions.system import system_conditions
from covey.device.home import DeviceHome
from covey.device.personal import PersonalModel
from covey.device.policy import OwnerPolicy
from covey.device.released import ReleaseSource
from covey.device.trainer import TrainingStopped
from covey.device.transport import HttpTransport, Transport
from covey.types.errors import CoveyError, NotFoundError

__all__ = ["Application"]


def _silent(event: AgentEvent) -> None:
    pass


class Application:
    """One population's part of an application. Use as a context manager, or :meth:`start` and :meth:`close` it.

    Attributes:
        examples: the example store.
        model: the model that serves.
    """

    def __init__(
        self,
        home: Path,
        server_url: str,
        policy: OwnerPolicy,
        *,
        ca_file: Path | None = None,
        conditions: Conditions | None = None,
        tune: bool = True,
        on_event: Callable[[AgentEvent], None] = _silent,
        transport: Transport | None = None,
        releases: ReleaseSource | None = None,
    ) -> None:
        """Open the state directory; nothing is sent yet.

        Args:
            home: the state directory. No other agent can use it meanwhile; other processes may add examples.
            server_url: ``https://host:port``.
            policy: what the owner accepts; names the population.
            ca_file: the authority to trust; None: the system's.
            conditions: when to train; None: this machine's own. :meth:`close` closes them.
            tune: whether to tune a personal model after a session that counted.
            on_event: gets every event, in the thread's own time.
            transport: instead of HTTPS to ``server_url``, for sessions.
            releases: the same, for releases.

        Raises:
            UsageError: the directory is in use, or a bad address or certificate file.
            StorageError: the directory cannot be read and written.
        """
        self._clock, self._stopping = SystemClock(), threading.Event()
        self._home = DeviceHome(home)
        try:
            self._conditions = conditions or system_conditions(home, self._clock)
            self._choices, self._population = Choices.of_home(home), policy.population
            self._connection = HttpTransport(server_url, ca_file)  # makes its connection when it is used
            self._releases: ReleaseSource = releases or self._connection
            self._tune, self._tell = tune, on_event
            self.examples = self._home.examples
            self.model = PersonalModel(home, policy.owner_key, policy.population)
            self._agent = DeviceAgent(
                self._home, server_url, policy, ca_file=ca_file, transport=transport,
                conditions=self._conditions, on_event=self._noted,
            )  # fmt: skip
        except BaseException:
            self._home.close()
            raise
        self._thread = threading.Thread(target=self._run, name="covey", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def may_train(self) -> bool:
        """Say whether the device may work now: its conditions hold, and its owner did not pause or refuse it."""
        return self._choices.allows(self._population, self._clock.now_s()) and self._conditions.check().holds

    def refresh(self) -> bool:
        """Fetch the newest release now; return whether there was a new one. False before the server has any.

        Raises:
            CoveyError: what kept it away; the release before it goes on serving.
        """
        try:
            return self.model.refresh(self._releases)
        except NotFoundError:
            return False

    def close(self) -> None:
        """Stop the thread, which ends a session within a second, and close everything."""
        self._stopping.set()
        self._agent.stop()
        self._connection.abort()
        if self._thread.ident is not None:
            self._thread.join()
        self._connection.close()
        self._conditions.close()
        self._home.close()

    def __enter__(self) -> "Application":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        self._improve(tune=False)
        try:
            self._agent.run()
        except CoveyError as error:  # waiting does not cure it: the application goes on with the model that it has
            self._tell(AgentEvent("ended", str(error), error=error))

    def _noted(self, event: AgentEvent) -> None:
        self._tell(event)
        if event.kind == "counted":
            self._improve(tune=self._tune)

    def _improve(self, *, tune: bool) -> None:
        """Take up a new release, and tune it to this device if it may work now."""
        try:
            if self.refresh():
                self._tell(AgentEvent("release", f"serving release {self.model.version}"))
            if tune and self.model.version and self.may_train():
                tuning = self.model.tune(self.examples, should_stop=self._should_stop)
                better = "better than the release: it is used" if tuning.used else "not used"
                self._tell(AgentEvent("tuned", f"a personal model is {better}"))
        except TrainingStopped:
            return
        except CoveyError as error:
            if not self._stopping.is_set():  # else the connection was cut here, to wake this thread
                self._tell(AgentEvent("not_improved", str(error), error=error))

    def _should_stop(self) -> bool:
        return self._stopping.is_set() or not self.may_train()
