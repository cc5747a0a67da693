"""The system bus of Linux: properties of its services, read once and kept until a signal says that they changed.

Needs ``jeepney`` (``pip install 'covey[linux]'``). Its blocking calls carry a deadline each; a bus or a service that is
away is asked again only every half minute, and a source then falls back on what it can tell without it.
"""

import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey.types.clock import DeviceClock

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

__all__ = ["BusAwayError", "SystemBus"]

_SOCKET = Path("/run/dbus/system_bus_socket")
_ANSWER_S = 0.5
_AGAIN_S = 30.0
_KEPT_SIGNALS = 64
_PROPERTIES = "org.freedesktop.DBus.Properties"


class BusAwayError(Exception):
    """The bus, or a service on it, does not answer. Not for users: a source turns it into a reading."""


class SystemBus:
    """One connection, made when it is first needed. One thread at a time."""

    def __init__(self, clock: DeviceClock) -> None:
        """Prepare; nothing is connected yet."""
        self._clock = clock
        self._connection: DBusConnection | None = None
        self._signals: deque[Any] = deque(maxlen=_KEPT_SIGNALS)
        self._known: dict[tuple[str, str, str, str], tuple[float, Any]] = {}
        self._watched: set[tuple[str, str]] = set()
        self._away_until_s = 0.0

    def get(self, service: str, path: str, interface: str, name: str, *, max_age_s: float = _AGAIN_S) -> Any:
        """Return a property: the value known, unless a signal came, or ``max_age_s`` passed, since it was read.

        Raises:
            BusAwayError: no bus, no such service, or no such property.
        """
        key = (service, path, interface, name)
        self._take_signals()
        if (known := self._known.get(key)) is not None and self._clock.elapsed_s() < known[0]:
            if isinstance(known[1], BusAwayError):
                raise known[1]
            return known[1]
        try:
            self._watch(service, path)
            value: Any = self.call(service, path, _PROPERTIES, "Get", "ss", (interface, name))[0][1]
        except BusAwayError as away:
            self._known[key] = (self._clock.elapsed_s() + _AGAIN_S, away)
            raise
        self._known[key] = (self._clock.elapsed_s() + max_age_s, value)
        return value

    def call(
        self, service: str, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and return what it returns.

        Raises:
            BusAwayError: no bus, or an error instead of an answer.
        """
        connection = self._connected()
        from jeepney import DBusAddress, DBusErrorResponse, new_method_call
        from jeepney.wrappers import unwrap_msg

        message = new_method_call(DBusAddress(path, service, interface), member, signature or None, body)
        try:
            answer: tuple[Any, ...] = unwrap_msg(connection.send_and_get_reply(message, timeout=_ANSWER_S))
        except DBusErrorResponse as e:
            raise BusAwayError(f"{service}: {e.name}") from e
        except OSError as e:  # also a timeout, or a bus that went away
            self._drop()
            raise BusAwayError(f"system bus: {type(e).__name__}") from e
        return answer

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._drop()
        self._away_until_s = 0.0

    def _connected(self) -> "DBusConnection":
        if self._connection is not None:
            return self._connection
        if self._clock.elapsed_s() < self._away_until_s:
            raise BusAwayError("system bus: away")
        try:
            if not (_SOCKET.exists() or "DBUS_SYSTEM_BUS_ADDRESS" in os.environ):
                raise BusAwayError("system bus: none here")
            from jeepney.io.blocking import open_dbus_connection

            self._connection = open_dbus_connection("SYSTEM")
        except ImportError as e:
            self._away_until_s = float("inf")
            raise BusAwayError("jeepney is not installed: pip install 'covey[linux]'") from e
        except (OSError, ValueError, RuntimeError) as e:  # an address that leads nowhere, or a refused login
            self._away_until_s = self._clock.elapsed_s() + _AGAIN_S
            raise BusAwayError(f"system bus: {type(e).__name__}") from e
        except BusAwayError:
            self._away_until_s = self._clock.elapsed_s() + _AGAIN_S
            raise
        return self._connection

    def _watch(self, service: str, path: str) -> None:
        """Ask for the signals of one object: later reads then cost no call."""
        if (service, path) in self._watched:
            return
        connection = self._connected()
        from jeepney import MatchRule

        rule = MatchRule(type="signal", interface=_PROPERTIES, member="PropertiesChanged", path=path)
        self._call_bus("AddMatch", "s", (rule.serialise(),))
        connection.filter(rule, queue=self._signals)
        self._watched.add((service, path))

    def _call_bus(self, member: str, signature: str, body: tuple[Any, ...]) -> None:
        self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member, signature, body)

    def _take_signals(self) -> None:
        """Forget what changed since the last look. Costs one poll of a socket where nothing did."""
        if self._connection is None:
            return
        try:
            with suppress(TimeoutError):
                while True:
                    self._connection.recv_messages(timeout=0)
        except OSError:
            self._drop()
            return
        while self._signals:
            changed = self._signals.popleft().header.fields.values()
            for key in [k for k in self._known if k[1] in changed]:
                del self._known[key]

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
        self._connection = None
        self._known.clear()
        self._watched.clear()
        self._signals.clear()
        self._away_until_s = self._clock.elapsed_s() + _AGAIN_S
