"""The server's side: one file for each step, and :class:`Server`, which collects, closes and opens."""

from covey.secagg.server.server import Opened, Server, Step

__all__ = ["Opened", "Server", "Step"]
