"""How much one credential, or one address, may ask: token buckets in memory, and the numbers of all limits.

Nothing here is stored, and nothing names a round: a bucket holds a level and a time.
"""

import ipaddress
from collections import OrderedDict

import msgspec

from covey.types.errors import RateLimitedError, UsageError

__all__ = ["Limits", "RateLimiter", "network_of"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[limits]`` table. The defaults stop floods; no honest device, or house full of them, comes near.

    Attributes:
        credential_per_s: requests of one credential, in the long run; 0: no limit.
        credential_burst: requests of one credential at once.
        peer_per_s: enrolments from one address (IPv6: one /64), in the long run; 0: no limit, as behind a proxy, where
            all devices have one address.
        peer_burst: enrolments from one address at once: many devices may share one.
        max_entries: how many credentials, and addresses, are remembered; the one that was quiet longest is forgotten.
        header_timeout_s: how long a connection may take to send a request's head.
        body_timeout_s: how long a body may take, besides
        min_bytes_per_s: a second for each so many bytes that have arrived; also the slowest download.
        max_connections: how many are open at once; one more is cut.
    """

    credential_per_s: float = 200.0
    credential_burst: int = 1_000
    peer_per_s: float = 50.0
    peer_burst: int = 2_000
    max_entries: int = 100_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    min_bytes_per_s: int = 4_096
    max_connections: int = 20_000

    def check(self, where: str) -> None:
        """Raise UsageError for a number out of range."""
        ranges = {
            "credential_per_s": (0, 1e6),
            "credential_burst": (1, 1_000_000),
            "peer_per_s": (0, 1e6),
            "peer_burst": (1, 1_000_000),
            "max_entries": (1, 10_000_000),
            "header_timeout_s": (0.05, 3600),
            "body_timeout_s": (0.05, 3600),
            "min_bytes_per_s": (1, 1 << 30),
            "max_connections": (1, 1_000_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{where}: limits.{name}", expected=f"{low:g} to {high:g}", got=str(value))


class RateLimiter:
    """A token bucket for each key. Not thread-safe."""

    def __init__(self, per_s: float, burst: int, max_entries: int) -> None:
        """Begin with full buckets of ``burst``, refilled at ``per_s``; 0: never refuse."""
        self._per_s, self._burst, self._max_entries = per_s, burst, max_entries
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: str, now_s: float) -> None:
        """Take one from a key's bucket.

        Args:
            key: whose.
            now_s: of a clock that only goes forward; one that goes back refills nothing.

        Raises:
            RateLimitedError: it is empty; ``retry_after_s`` says when it will not be.
        """
        if not self._per_s:
            return
        level, at_s = self._levels.pop(key, (float(self._burst), now_s))
        level = min(float(self._burst), level + max(0.0, now_s - at_s) * self._per_s)
        allowed = level >= 1.0
        self._levels[key] = (level - 1.0 if allowed else level, now_s)
        while len(self._levels) > self._max_entries:
            self._levels.popitem(last=False)
        if not allowed:
            error = RateLimitedError(
                "requests", expected=f"at most {self._per_s:g} a second", got="more", hint="wait, then go on"
            )
            error.retry_after_s = (1.0 - level) / self._per_s
            raise error


def network_of(host: str) -> str:
    """Return whose an address is: itself, or its /64 for IPv6, all of which one machine can take."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)
