"""An agent's side of serving: it fetches new releases for the applications of a device, which need no network then.

Only where an application asked for the model (:meth:`covey.device.released.ReleaseStore.want`), and at times when the
agent talks to the server anyway: the conditions held then.
"""

from pathlib import Path

from covey.device.events import AgentEvent, Tell
from covey.device.policy import OwnerPolicy
from covey.device.released import ReleaseSource, ReleaseStore
from covey.device.transport import HttpTransport
from covey.types.errors import CoveyError, NotFoundError

__all__ = ["ReleaseKeeper"]

_MOMENTS = ("enrolled", "counted")


class ReleaseKeeper:
    """Takes an agent's events, passes them on, and after some of them looks for a newer release."""

    def __init__(
        self,
        home: Path,
        server_url: str,
        policy: OwnerPolicy,
        tell: Tell,
        *,
        ca_file: Path | None = None,
        source: ReleaseSource | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            home: the state directory.
            server_url: ``https://host:port``.
            policy: names the population, the owner's key and the most memory.
            tell: gets the agent's events, and ``release`` or ``release_failed``.
            ca_file: the authority to trust; None: the system's.
            source: instead of HTTPS to ``server_url``.

        Raises:
            UsageError: a bad address or certificate file.
        """
        self._store = ReleaseStore(home, policy.owner_key, policy.population, max_memory_bytes=policy.max_memory_bytes)
        self._connection = HttpTransport(server_url, ca_file)
        self._source: ReleaseSource = source or self._connection
        self._tell = tell
        self._is_stopped = False

    def __call__(self, event: AgentEvent) -> None:
        """Take an event of the agent, in its thread."""
        self._tell(event)
        if event.kind in _MOMENTS and not self._is_stopped and self._store.is_wanted:
            self._refresh()

    def stop(self) -> None:
        """End a download that is under way; from any thread."""
        self._is_stopped = True
        self._connection.abort()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _refresh(self) -> None:
        try:
            served = self._store.refresh(self._source)
        except NotFoundError:
            return  # the server has none yet
        except CoveyError as error:  # the release before it goes on serving
            if not self._is_stopped:
                self._tell(AgentEvent("release_failed", str(error), error=error))
            return
        if served is not None:
            version = served.release.version
            self._tell(AgentEvent("release", f"release {version} is here for the applications of this device"))
