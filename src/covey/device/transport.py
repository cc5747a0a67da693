"""HTTPS to the server: TLS 1.3, the pinned authority, bounded answers, and every failure as one of Covey's errors."""

import contextlib
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import msgspec

from covey.types.errors import TooLargeError, TransportError, UsageError, WireError
from covey.wire.messages import (
    CREDENTIAL_SCHEME,
    MAX_MESSAGE_BYTES,
    SECURE_STEPS,
    Abandon,
    Abandoned,
    Assignment,
    BlobRef,
    Certified,
    Certify,
    CheckIn,
    ComeBack,
    Enroll,
    Enrolled,
    Joined,
    PopulationStatus,
    Reported,
    Taken,
    decode_message,
    encode_message,
    error_from_body,
)

__all__ = ["HttpTransport", "Transport", "tls_context"]

M = TypeVar("M", Abandoned, Certified, Enrolled, PopulationStatus)

LONG_POLL_S = 120.0
"""How long a check-in may go unanswered: longer than any server holds one."""

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_LAST_WORD_TIMEOUT = httpx.Timeout(2.0)
_CHUNK_BYTES = 64 << 10
MAX_STEP_BYTES = 8 << 20
"""What the server sends in a secure sum: at most the public keys of 16,384 parties and a few hundred shares."""


class Transport(Protocol):
    """What a device needs of a server. Every call raises the error that the server sent, or TransportError."""

    def enroll(self, message: Enroll) -> Enrolled:
        """Ask for a credential."""
        ...

    def check_in(self, message: CheckIn, credential: str) -> Assignment | ComeBack:
        """Ask for work; the server may hold the answer back for a while."""
        ...

    def fetch(self, ref: BlobRef, credential: str, start: int = 0) -> Generator[bytes, None, None]:
        """Yield a blob's bytes from ``start`` on, as they arrive. Nothing is verified here."""
        ...

    def report(self, session: str, body: bytes, credential: str) -> Reported:
        """Send an update."""
        ...

    def send_step(self, session: str, step: str, body: bytes, credential: str) -> Taken | Reported:
        """Send a message of a secure sum; after the last one the update is in the sum."""
        ...

    def await_step(self, session: str, step: str, credential: str) -> Joined | bytes | None:
        """Return what a step of a secure sum led to; None: not yet, ask again."""
        ...

    def abandon(self, session: str, message: Abandon, credential: str) -> Abandoned:
        """Say that a session ends here."""
        ...

    def abort(self) -> None:
        """Make a call that waits in another thread fail now, and every later one but ``abandon``; from any thread."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class HttpTransport:
    """A connection to one server. One thread uses it at a time; :meth:`abort` may come from any."""

    def __init__(self, server_url: str, ca_file: Path | None, *, network: httpx.BaseTransport | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            server_url: ``https://host:port``.
            ca_file: PEM certificates of the authority to trust, and no other; None: those of the system.
            network: instead of the real one, for tests.

        Raises:
            UsageError: not an https URL, or no usable certificate file.
        """
        url = _server_url(server_url)
        self._client = httpx.Client(
            base_url=url,
            verify=tls_context(ca_file),
            timeout=_TIMEOUT,
            trust_env=False,  # a proxy or a key log named by the environment is not the owner's choice
            follow_redirects=False,
            headers={"user-agent": "covey", "accept-encoding": "identity"},
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            transport=network,
        )
        self._socket: socket.socket | None = None
        self._aborted = self._last_word = False

    def enroll(self, message: Enroll) -> Enrolled:
        """See :class:`Transport`."""
        return self._post("/v1/enroll", message, Enrolled, "")

    def check_in(self, message: CheckIn, credential: str) -> Assignment | ComeBack:
        """See :class:`Transport`."""
        data = self._send("POST", "/v1/checkin", encode_message(message), credential, read_s=LONG_POLL_S)
        return _assignment_or_come_back(data)

    def fetch(self, ref: BlobRef, credential: str, start: int = 0) -> Generator[bytes, None, None]:
        """See :class:`Transport`. A server that sends the whole blob all the same costs time, and nothing else."""
        if not ref.path.startswith("/") or ref.path.startswith("//"):
            raise WireError("blob", expected="a path on the same server", got="another address")
        rest = {"range": f"bytes={start}-", "if-range": f'"{ref.sha256}"'} if start else {}
        with self._stream("GET", ref.path, b"", credential, read_s=None, headers=rest) as response:
            skip = 0 if response.status_code == 206 else start
            for chunk in response.iter_raw(_CHUNK_BYTES):
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def report(self, session: str, body: bytes, credential: str) -> Reported:
        """See :class:`Transport`."""
        path = f"/v1/sessions/{_segment(session)}/report"
        data = self._send("POST", path, body, credential, kind="application/octet-stream")
        return decode_message(data, Reported)

    def send_step(self, session: str, step: str, body: bytes, credential: str) -> Taken | Reported:
        """See :class:`Transport`."""
        path = f"/v1/sessions/{_segment(session)}/secure/{_segment(step)}"
        data = self._send("POST", path, body, credential, kind="application/octet-stream")
        return decode_message(data, Reported) if step == SECURE_STEPS[-1] else decode_message(data, Taken)

    def await_step(self, session: str, step: str, credential: str) -> Joined | bytes | None:
        """See :class:`Transport`."""
        path = f"/v1/sessions/{_segment(session)}/secure/{_segment(step)}"
        with self._stream("GET", path, b"", credential, read_s=LONG_POLL_S) as response:
            if response.status_code == 204:
                return None
            data = _bounded(response, MAX_STEP_BYTES)
        return decode_message(data, Joined) if step == SECURE_STEPS[0] else data

    def abandon(self, session: str, message: Abandon, credential: str) -> Abandoned:
        """See :class:`Transport`. Once aborted, this is the last word, and must be quick."""
        self._last_word = True
        try:
            return self._post(f"/v1/sessions/{_segment(session)}/abandon", message, Abandoned, credential)
        finally:
            self._last_word = False

    def certify(self, message: Certify) -> Certified:
        """Ask an enrolment authority, which is at an address of its own, for a certificate."""
        return self._post("/v1/certify", message, Certified, "")

    def release(self, population: str) -> bytes:
        """Return the population's newest release as JSON; :mod:`covey.device.released` verifies it."""
        return self._send("GET", f"/v1/populations/{_segment(population)}/release", b"", "")

    def status(self, population: str, *, after: int = 0) -> PopulationStatus:
        """Return the public state of a population, with the summaries of its rounds after ``after``."""
        data = self._send("GET", f"/v1/populations/{_segment(population)}?after={after}", b"", "")
        return decode_message(data, PopulationStatus)

    def abort(self) -> None:
        """See :class:`Transport`."""
        self._aborted = True
        if (connection := self._socket) is not None:
            with contextlib.suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See :class:`Transport`."""
        self._client.close()

    def _post(self, path: str, message: Any, kind: type[M], credential: str) -> M:
        return decode_message(self._send("POST", path, encode_message(message), credential), kind)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        credential: str,
        *,
        kind: str = "application/json",
        read_s: float | None = None,
    ) -> bytes:
        with self._stream(method, path, body, credential, kind=kind, read_s=read_s) as response:
            return _bounded(response)

    @contextlib.contextmanager
    def _stream(
        self,
        method: str,
        path: str,
        body: bytes,
        credential: str,
        *,
        kind: str = "application/json",
        read_s: float | None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """Send a request; yield its successful answer unread."""
        if self._aborted and not self._last_word:
            raise TransportError("server", expected="an open connection", got="one that was stopped here")
        headers = {**_authorization(credential), **(headers or {})}
        if method == "POST":
            headers["content-type"] = kind
        timeout = _TIMEOUT if read_s is None else httpx.Timeout(30.0, connect=10.0, read=read_s)
        timeout = _LAST_WORD_TIMEOUT if self._aborted else timeout
        extensions: dict[str, Any] = {"trace": self._trace, "timeout": timeout.as_dict()}
        try:
            request = self._client.build_request(method, path, content=body, headers=headers, extensions=extensions)
            response = self._client.send(request, stream=True)
            try:
                if response.is_redirect:
                    raise _redirected(response.status_code)
                if response.status_code not in (200, 204, 206):
                    raise error_from_body(response.status_code, _bounded(response), "server")
                yield response
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as e:
            raise _transport_error(e) from e

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the socket, so that :meth:`abort` can wake a thread that waits on it."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._aborted and not self._last_word:
                self.abort()  # it came while this connection was being made


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that speaks TLS 1.3 only and trusts ``ca_file`` only (None: the system's authorities).

    Raises:
        UsageError: the file cannot be read, or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_file is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError as e:
        raise UsageError(f"certificate file {ca_file}", expected="certificates in PEM", got="something else") from e
    except OSError as e:
        raise UsageError(
            f"certificate file {ca_file}",
            expected="a readable file",
            got=e.strerror or "an error",
            hint="the server writes its authority's certificate when it starts; copy it here",
        ) from e
    return context


def _server_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme != "https" or not url.host:
        raise UsageError("server", expected="a URL such as https://host:8443", got=text[:200])
    return url


def _authorization(credential: str) -> dict[str, str]:
    if not credential:
        return {}
    if not (credential.isascii() and credential.isprintable()):
        raise WireError("credential", expected="printable ASCII", got="other characters")
    return {"authorization": f"{CREDENTIAL_SCHEME} {credential}"}


def _assignment_or_come_back(data: bytes) -> Assignment | ComeBack:
    """Tell the two answers of a check-in apart: only an assignment names a session."""
    try:
        head = msgspec.json.decode(data[:MAX_MESSAGE_BYTES])
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise WireError("check-in", expected="an assignment, or when to come back", got="something else") from e
    if isinstance(head, dict) and "session" in head:
        return decode_message(data, Assignment)
    return decode_message(data, ComeBack)


def _bounded(response: httpx.Response, at_most: int = MAX_MESSAGE_BYTES) -> bytes:
    """Read an answer of at most so many bytes."""
    data = bytearray()
    for chunk in response.iter_raw(_CHUNK_BYTES):
        data += chunk
        if len(data) > at_most:
            raise TooLargeError("answer", expected=f"at most {at_most} bytes", got="more")
    return bytes(data)


def _segment(text: str) -> str:
    """Return one path segment; a name that is more than that would change the path."""
    if not text or len(text) > 200 or not all(c.isalnum() or c in "-_.~" for c in text) or text in (".", ".."):
        raise WireError("path", expected="letters, digits and -_.~", got="another name")
    return text


def _redirected(status: int) -> WireError:
    """Refuse to be sent elsewhere: the pinned server answers itself, and nothing is ever sent over plain HTTP."""
    return WireError(
        "server",
        expected="an answer of this protocol",
        got=f"HTTP {status}, a redirect",
        hint="devices follow none: give --server the address that answers itself",
    )


def _transport_error(error: Exception) -> TransportError:
    """Say what went wrong; never with an address or a credential in it."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return TransportError(
            "server",
            expected="a certificate of the pinned authority",
            got="another certificate",
            hint="check --ca and the server's name; an authority that was made anew has to be copied anew",
        )
    return TransportError(
        "server", expected="an answer", got=type(error).__name__, hint="is the server running, and the address right?"
    )
