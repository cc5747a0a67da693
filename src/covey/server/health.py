"""Whether a server works: the storage answers, and the clock that opens and closes rounds runs."""

import msgspec

__all__ = ["Health"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a server that works. One that does not answers 503 with the error ``unhealthy``."""

    status: str = "ok"
