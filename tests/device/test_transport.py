"""The transport: every call of the protocol, every failure as one of Covey's errors, TLS 1.3 and one authority only."""

import contextlib
import datetime
import http.server
import ipaddress
import ssl
import threading
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from covey.device.transport import HttpTransport
from covey.types.errors import (
    CoveyError,
    SessionUnknownError,
    TooLargeError,
    TransportError,
    UsageError,
    VersionError,
    WireError,
    all_errors,
)
from covey.wire.messages import (
    Abandon,
    Abandoned,
    Assignment,
    BlobRef,
    CheckIn,
    ComeBack,
    Enroll,
    Enrolled,
    ErrorBody,
    PopulationStatus,
    Reported,
    encode_message,
)

from . import world

CHECK_IN = CheckIn(population=world.POPULATION)
REF = world.ref(b"blob" * 100_000, "checkpoints")


def transport(answer, seen=None) -> HttpTransport:
    """Return a transport whose network calls ``answer(request)``."""

    def handle(request):
        request.read()
        if seen is not None:
            seen.append(request)
        return answer(request)

    return HttpTransport("https://server:8443", None, network=httpx.MockTransport(handle))


def response(status, content, **headers):
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(content))


def replies(message, status=200):
    return lambda request: response(status, encode_message(message))


STATUS = PopulationStatus(
    population="p",
    task="t",
    state="selecting",
    round=3,
    waiting=2,
    plan=REF,
    checkpoint=REF,
    mode="plain",
    min_cohort=2,
)
ENROLLED = Enrolled(credential="c", expires_in_s=9.0)
COME_BACK = ComeBack(retry_after_s=1.0, reason="paused")
REPORTED, ABANDONED = Reported(counted=True, retry_after_s=1.0), Abandoned(retry_after_s=1.0)
CALLS = [
    (lambda t: t.enroll(Enroll(population="p")), "POST", "/v1/enroll", ENROLLED, False),
    (lambda t: t.check_in(CHECK_IN, "cr"), "POST", "/v1/checkin", world.assignment(), True),
    (lambda t: t.check_in(CHECK_IN, "cr"), "POST", "/v1/checkin", COME_BACK, True),
    (lambda t: t.report("s1", b"body", "cr"), "POST", "/v1/sessions/s1/report", REPORTED, True),
    (lambda t: t.abandon("s1", Abandon(reason="r"), "cr"), "POST", "/v1/sessions/s1/abandon", ABANDONED, True),
    (lambda t: t.status("p", after=7), "GET", "/v1/populations/p?after=7", STATUS, False),
]


@pytest.mark.parametrize(("call", "method", "path", "message", "authorized"), CALLS)
def test_each_call_of_the_protocol(call, method, path, message, authorized):
    seen = []
    with contextlib.closing(transport(replies(message), seen)) as t:
        assert call(t) == message
    (request,) = seen
    assert (request.method, request.url.raw_path.decode()) == (method, path)
    assert request.headers.get("authorization") == ("Bearer cr" if authorized else None)
    assert request.headers["user-agent"] == "covey"


def test_a_release_is_fetched_as_it_is():
    seen = []
    with contextlib.closing(transport(lambda r: response(200, b"any bytes"), seen)) as t:
        assert t.release("p") == b"any bytes"
    assert seen[0].url.raw_path.decode() == "/v1/populations/p/release" and "authorization" not in seen[0].headers


def test_the_two_answers_of_a_check_in_are_told_apart():
    assert isinstance(transport(replies(world.assignment())).check_in(CHECK_IN, "c"), Assignment)
    assert isinstance(transport(replies(ComeBack(retry_after_s=1, reason="r"))).check_in(CHECK_IN, "c"), ComeBack)
    for other in (b"", b"{}", b"[]", b"\xff", b'{"session": 1}'):
        with pytest.raises(WireError):
            transport(lambda r, other=other: response(200, other)).check_in(CHECK_IN, "c")


def test_a_report_is_binary():
    seen = []
    transport(replies(Reported(counted=True, retry_after_s=0)), seen).report("s", b"\x00\x01", "c")
    assert seen[0].content == b"\x00\x01" and seen[0].headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("code", sorted(all_errors()))
def test_every_error_of_the_server_comes_back_as_itself(code):
    kind = all_errors()[code]
    body = ErrorBody(code=code, message="what happened", hint="what to do", retry_after_s=2.0)
    with pytest.raises(kind, match="what happened") as caught:
        transport(replies(body, kind.http_status)).check_in(CHECK_IN, "c")
    assert type(caught.value) is kind
    assert (caught.value.hint, caught.value.retry_after_s) == ("what to do", 2.0)


def test_a_page_of_a_proxy_is_no_answer():
    with pytest.raises(WireError, match="HTTP 502"):
        transport(lambda r: response(502, b"<html>")).check_in(CHECK_IN, "c")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["https://elsewhere/x", "http://server:8443/v1/checkin", "/v1/enroll"])
def test_no_redirect_is_followed_and_least_of_all_to_plain_http(status, to):
    seen = []
    t = transport(lambda r: response(status, b"", location=to), seen)
    calls = (
        lambda: t.check_in(CHECK_IN, "c"),
        lambda: t.report("s", b"update", "c"),
        lambda: list(t.fetch(REF, "c")),
        lambda: t.enroll(Enroll(population="p")),
    )
    for call in calls:
        with pytest.raises(WireError, match=f"HTTP {status}, a redirect") as caught:
            call()
        assert "elsewhere" not in str(caught.value) + caught.value.hint
    assert len(seen) == len(calls) and all(r.url.host == "server" and r.url.scheme == "https" for r in seen)


def test_a_download_is_asked_for_from_where_it_was_cut():
    data, seen = bytes(range(256)) * 1000, []
    ref = world.ref(data, "checkpoints")

    def ranged(request):
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert request.headers["if-range"] == f'"{ref.sha256}"'
        return response(206, data[start:])

    assert b"".join(transport(ranged, seen).fetch(ref, "c", 70_001)) == data[70_001:]
    # A server, or a proxy, that knows no ranges sends all of it.
    assert b"".join(transport(lambda r: response(200, data)).fetch(ref, "c", 70_001)) == data[70_001:]
    assert b"".join(transport(lambda r: response(200, data), seen).fetch(ref, "c")) == data
    assert "range" not in seen[-1].headers


def test_an_answer_without_end_is_cut_off():
    with pytest.raises(TooLargeError, match="at most 65536 bytes"):
        transport(lambda r: response(200, bytes(10**6))).check_in(CHECK_IN, "c")
    with pytest.raises(TooLargeError):
        transport(lambda r: response(500, bytes(10**6))).check_in(CHECK_IN, "c")


@pytest.mark.parametrize(
    "kind",
    [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError, httpx.UnsupportedProtocol],
)
def test_every_failure_of_the_network_is_a_transport_error(kind):
    def fail(request):
        raise kind("https://server:8443 secret")

    with pytest.raises(TransportError, match=kind.__name__) as caught:
        transport(fail).check_in(CHECK_IN, "c")
    assert "secret" not in str(caught.value) and "server:8443" not in str(caught.value)


def test_a_blob_arrives_in_pieces_and_only_from_the_same_server():
    data = b"blob" * 100_000
    t = transport(lambda r: response(200, data))
    parts = list(t.fetch(REF, "c"))
    assert b"".join(parts) == data and max(map(len, parts)) <= 64 << 10
    for path in ("https://elsewhere/x", "//elsewhere/x", "relative"):
        with pytest.raises(WireError, match="a path on the same server"):
            list(t.fetch(BlobRef(sha256=REF.sha256, num_bytes=1, path=path), "c"))
    with pytest.raises(SessionUnknownError):
        list(transport(replies(ErrorBody(code="session_unknown", message="m"), 404)).fetch(REF, "c"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "a?b", "a#b", "a b", "é" * 300])
def test_a_session_name_cannot_change_the_path(name):
    with pytest.raises(WireError, match="path"):
        transport(replies(Reported(counted=True, retry_after_s=0))).report(name, b"", "c")


@pytest.mark.parametrize("url", ["http://server", "server:8443", "https://", "ftp://server", "https://[::x", ""])
def test_only_https(url):
    with pytest.raises(UsageError, match="https://host:8443"):
        HttpTransport(url, None)


def test_a_certificate_file_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="expected a readable file, got No such file") as caught:
        HttpTransport("https://server", tmp_path / "ca.pem")
    assert "copy it here" in caught.value.hint
    (tmp_path / "ca.pem").write_bytes(b"no certificate")
    with pytest.raises(UsageError, match="certificates in PEM"):
        HttpTransport("https://server", tmp_path / "ca.pem")


@pytest.mark.parametrize("credential", ["a\r\nx: y", "é", "\x00"])
def test_a_credential_cannot_add_headers(credential):
    with pytest.raises(WireError, match="credential: expected printable ASCII"):
        transport(replies(COME_BACK)).check_in(CHECK_IN, credential)


# --- over a real socket ---


def make_certificate(directory, name):
    """Write a self-signed certificate for 127.0.0.1 and its key; return both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, private = directory / f"{name}.pem", directory / f"{name}.key"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ca, private


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/checkin":
            self.server.held.set()
            self.server.release.wait(30)
        body = encode_message(Abandoned(retry_after_s=1.0))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that breaks off is what some tests are about


@contextlib.contextmanager
def running(directory, maximum=None):
    ca, key = make_certificate(directory, "authority")
    server = Server(("127.0.0.1", 0), Handler)
    server.held, server.release = threading.Event(), threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    if maximum is not None:
        context.maximum_version = maximum
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"https://127.0.0.1:{server.server_address[1]}", ca
    finally:
        server.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def abandon(t):
    return t.abandon("s", Abandon(reason="r"), "c")


def test_tls_with_the_pinned_authority(tmp_path):
    with running(tmp_path) as (_, url, ca), contextlib.closing(HttpTransport(url, ca)) as t:
        assert abandon(t) == Abandoned(retry_after_s=1.0)
        assert t._socket.version() == "TLSv1.3"


def test_another_authority_is_refused(tmp_path):
    other, _ = make_certificate(tmp_path, "other")
    with (
        running(tmp_path) as (_, url, _ca),
        contextlib.closing(HttpTransport(url, other)) as t,
        pytest.raises(TransportError, match="a certificate of the pinned authority") as caught,
    ):
        abandon(t)
    assert "--ca" in caught.value.hint


def test_an_older_tls_is_refused(tmp_path):
    with (
        running(tmp_path, ssl.TLSVersion.TLSv1_2) as (_, url, ca),
        contextlib.closing(HttpTransport(url, ca)) as t,
        pytest.raises(TransportError),
    ):
        abandon(t)


def test_nobody_there():
    with contextlib.closing(HttpTransport("https://127.0.0.1:1", None)) as t, pytest.raises(TransportError) as caught:
        abandon(t)
    assert "is the server running" in caught.value.hint


def test_a_waiting_call_is_woken_by_abort_and_only_an_abandon_passes_after(tmp_path):
    with running(tmp_path) as (server, url, ca), contextlib.closing(HttpTransport(url, ca)) as t:
        caught = []

        def wait():
            try:
                t.check_in(CHECK_IN, "c")
            except CoveyError as e:
                caught.append(e)

        thread = threading.Thread(target=wait)
        thread.start()
        assert server.held.wait(30)
        begun = time.monotonic()
        t.abort()
        thread.join(timeout=25)
        assert not thread.is_alive() and time.monotonic() - begun < 25  # far below the 120 s of a long-poll
        assert isinstance(caught[0], TransportError)
        with pytest.raises(TransportError, match="stopped here"):
            t.check_in(CHECK_IN, "c")
        assert abandon(t) == Abandoned(retry_after_s=1.0)


def test_versions_that_differ_are_named():
    body = ErrorBody(code="wire_version", message="expected 1, got 2", hint="upgrade the older side")
    with pytest.raises(VersionError):
        transport(replies(body, 400)).check_in(CHECK_IN, "c")
