"""A network that drops, delays and repeats: an HTTPS proxy in front of a server, with the server's own certificate.

It ends TLS, so that it can do to whole requests what a bad network and impatient middle boxes do: lose a request, lose
its answer after the server has acted, deliver a request twice at once, and hold it back.
"""

import asyncio
import contextlib
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = ["Roughness", "rough_network"]

_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_DROPPED_HEADERS = {"host", "content-length", "connection"}


@dataclass(frozen=True, slots=True)
class Roughness:
    """How often what happens to a request, as probabilities, and the longest delay."""

    lose_request: float = 0.02
    lose_answer: float = 0.02
    twice: float = 0.05
    delay: float = 0.1
    most_s: float = 0.3


class _Proxy:
    def __init__(self, upstream: str, authority: Path, roughness: Roughness, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._roughness, self._chance = roughness, random.Random(seed)
        trusted = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        self._client = httpx.AsyncClient(
            base_url=upstream, verify=trusted, timeout=_TIMEOUT, trust_env=False,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=1.0),
        )  # fmt: skip
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(authority / "server.pem", authority / "server.key")
        self._stop = asyncio.Event()

    async def serve(self, known: threading.Event, port: list[int]) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
        port.append(server.sockets[0].getsockname()[1])
        known.set()
        async with server:
            await self._stop.wait()
        await self._client.aclose()

    def stop(self) -> None:
        self._stop.set()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A cancellation is the end of the proxy; asyncio would report it as a fault of this coroutine.
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, httpx.HTTPError, ssl.SSLError, asyncio.CancelledError
        ):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._request(head, reader, writer):
                    break
        writer.close()

    async def _request(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carry one request; return whether the connection goes on."""
        line, *fields = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        headers = {k.lower(): v for k, _, v in (f.partition(": ") for f in fields if f)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        kept = {k: v for k, v in headers.items() if k not in _DROPPED_HEADERS}
        rough, fate = self._roughness, self._chance.random
        self.counts["requests"] += 1
        if fate() < rough.delay:
            self.counts["delayed"] += 1
            await asyncio.sleep(rough.most_s * fate())
        if fate() < rough.lose_request:
            self.counts["requests lost"] += 1
            return False
        times = 1
        if method == "POST" and fate() < rough.twice:
            self.counts["sent twice"] += 1
            times = 2
        answers = await asyncio.gather(
            *(self._client.request(method, path, content=body, headers=kept) for _ in range(times))
        )
        if fate() < rough.lose_answer:
            self.counts["answers lost"] += 1
            return False
        answer = answers[-1]
        told = {"content-type": answer.headers.get("content-type", ""), "content-length": str(len(answer.content))}
        lines = [f"HTTP/1.1 {answer.status_code} x", *(f"{k}: {v}" for k, v in told.items()), "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + answer.content)
        await writer.drain()
        return True


@contextlib.contextmanager
def rough_network(
    upstream: str, authority: Path, *, seed: int, roughness: Roughness | None = None
) -> Iterator[tuple[str, Counter[str]]]:
    """Run the proxy in a thread; yield its address, and what it did so far.

    Args:
        upstream: the address of the server, which may die and come back.
        authority: the server's certificate, its key, and who signed it.
        seed: of what happens to whom.
        roughness: how bad it is.
    """
    port: list[int] = []
    known = threading.Event()
    proxies: list[tuple[_Proxy, asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        proxy = _Proxy(upstream, authority, roughness or Roughness(), seed)
        proxies.append((proxy, asyncio.get_running_loop()))
        await proxy.serve(known, port)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="rough network")
    thread.start()
    try:
        if not known.wait(30):
            raise TimeoutError("the proxy does not start")
        yield f"https://127.0.0.1:{port[0]}", proxies[0][0].counts
    finally:
        for proxy, loop in proxies:
            loop.call_soon_threadsafe(proxy.stop)
        thread.join(30)
