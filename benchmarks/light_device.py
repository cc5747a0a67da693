"""Devices without a trainer, many to a process: they speak the protocol over HTTPS with updates made of chance."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey.device.secure import SecureReport
from covey.plans.manifest import Manifest
from covey.types.errors import TransportError
from covey.types.segments import HEADER
from covey.wire.messages import (
    SECURE_STEPS,
    Assignment,
    CheckIn,
    ComeBack,
    Enroll,
    Enrolled,
    Joined,
    encode_message,
)

__all__ = ["LightDevice", "made_up_update", "trusting"]


def trusting(authority: Path) -> ssl.SSLContext:
    """Return a context that trusts a server's own authority."""
    return ssl.create_default_context(cafile=str(authority / "ca.pem"))


def made_up_update(manifest: Manifest, seed: int) -> dict[str, NDArray[np.floating]]:
    """Return an update as reals: a weight of 1 and small changes."""
    rng = np.random.default_rng(seed)
    header = np.concatenate([[1.0, 1.0], rng.uniform(0, 1, len(manifest.metrics))])
    segments = {s.name: s for s in manifest.phases[0].segments}
    out: dict[str, NDArray[np.floating]] = {HEADER: header}
    for name, s in segments.items():
        out[name] = 0.01 * rng.standard_normal(s.length, np.float32)
    return out


class LightDevice:
    """One connection that stays open, and one credential. ``small_bytes``: of its messages but masked updates."""

    def __init__(self, url: str, tls: ssl.SSLContext, population: str) -> None:
        """Prepare; nothing is sent yet."""
        host, port = url.removeprefix("https://").split(":")
        self._host, self._port, self._tls = host, int(port), tls
        self._population = population
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.credential = ""
        self.small_bytes = 0

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return its status and content.

        A connection that the server closed in that moment is made anew, and the same bytes are sent again: every
        request of the protocol may be repeated.
        """
        try:
            return await self._exchange(method, path, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            await self.close()
            return await self._exchange(method, path, body)

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        reader, writer = await self.connect()
        bearer = f"authorization: Bearer {self.credential}\r\n" if self.credential else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\n{bearer}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
        status, size = int(answer[9:12]), 0
        for line in answer.split(b"\r\n")[1:]:
            if line[:15].lower() == b"content-length:":
                size = int(line[15:])
        return status, await reader.readexactly(size)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection; a new one where the server has closed it, as it does with idle ones."""
        if self._streams is None or self._streams[0].at_eof():
            await self.close()
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        return self._streams

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def enroll(self) -> None:
        """Get a credential."""
        data = await self._ok("POST", "/v1/enroll", encode_message(Enroll(population=self._population)))
        self.credential = msgspec.json.decode(data, type=Enrolled).credential

    async def check_in(self) -> Assignment | ComeBack:
        """Ask for work."""
        data = await self._ok("POST", "/v1/checkin", encode_message(CheckIn(population=self._population)))
        return msgspec.json.decode(data, type=Assignment if b'"session"' in data else ComeBack)

    async def selected(self) -> Assignment:
        """Check in until there is work."""
        while True:
            answer = await self.check_in()
            if isinstance(answer, Assignment):
                return answer
            await asyncio.sleep(min(answer.retry_after_s, 0.1))

    async def report(self, session: str, body: bytes) -> None:
        """Send a plain update; where the server has no room, again."""
        await self._sent(f"/v1/sessions/{session}/report", body)

    async def take_part(
        self,
        manifest: Manifest,
        given: Assignment,
        inputs: Callable[[], list[NDArray[np.int64]]],
        randomness: Callable[[int], bytes],
        *,
        lost_before: str = "",
        masks: asyncio.Semaphore,
    ) -> str:
        """Go through a secure sum; return the last step whose message was taken.

        Args:
            manifest: of the plan.
            given: the assignment.
            inputs: makes the integers that are summed, when they are needed.
            randomness: returns that many unpredictable bytes.
            lost_before: the step before which this device is lost.
            masks: how many of the process's devices may hold an update at a time.
        """
        values: list[NDArray[np.int64]] = []
        secure = SecureReport(manifest, given, self._population, values, randomness=randomness, used_sums=set())
        path, body, told, done = f"/v1/sessions/{given.session}/secure", b"", b"", ""
        for step in SECURE_STEPS:
            if step == lost_before:
                return done
            if step == "mask":
                async with masks:
                    values += inputs()
                    _, body = secure.told("share", told)
                    values.clear()
                    await self._sent(f"{path}/{step}", body)
                    self.small_bytes -= len(body)
                    body = b""
            else:
                await self._sent(f"{path}/{step}", body)
            done = step
            if step == SECURE_STEPS[-1]:
                return done
            told = await self._told(given.session, step)
            if step == "ready":
                body = secure.joined(msgspec.json.decode(told, type=Joined))
            elif step != "share":
                _, body = secure.told(step, told)
        return done

    async def _told(self, session: str, step: str) -> bytes:
        while True:
            status, data = await self.request("GET", f"/v1/sessions/{session}/secure/{step}")
            if status == 200:
                return data
            if status != 204:
                raise TransportError("server", expected="what a step led to", got=f"{status} {data[:200]!r}")

    async def _sent(self, path: str, body: bytes) -> None:
        while True:
            status, data = await self.request("POST", path, body)
            if status == 200:
                self.small_bytes += len(body)
                return
            if status != 503:
                raise TransportError("server", expected="success", got=f"{status} {data[:200]!r}")
            await asyncio.sleep(0.05)

    async def _ok(self, method: str, path: str, body: bytes) -> bytes:
        status, data = await self.request(method, path, body)
        if status != 200:
            raise TransportError("server", expected="success", got=f"{status} {data[:200]!r}")
        return data
