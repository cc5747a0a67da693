"""Hostile clients over real sockets: a stable code for each, a cut connection, and honest devices notice nothing."""

import contextlib
import os
import socket
import ssl
import time

import msgspec
import pytest
from device import world

from covey.device.transport import HttpTransport
from covey.server.credentials import Credentials
from covey.types.errors import AlreadyCountedError, CoveyError, NotFoundError, RateLimitedError, UnauthorizedError
from covey.wire.messages import Abandon, CheckIn, Enroll, ErrorBody, encode_message

from . import parts
from .app import P
from .test_run import QUICK, sessions

# A connection that the server cut mid-handshake is left to the collector by CPython 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

TIMEOUT_S = 0.4
LIMITS = f"\n[limits]\nheader_timeout_s = {TIMEOUT_S}\nbody_timeout_s = {TIMEOUT_S}\n"
SOON_S = 20.0
"""A bound for tests that would hang; nothing is measured."""

ENROLL = encode_message(Enroll(population=P))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "server"
    return parts.write_directory(folder, rounds=QUICK + LIMITS, plan=world.plan_bytes())


@pytest.fixture(scope="module")
def served(directory):
    with parts.served(directory) as running:
        yield running
        running.terminate()
        assert running.wait(SOON_S) == 0
        assert running.stderr.read() == ""  # whatever was sent, nothing broke and nothing was logged


@pytest.fixture(scope="module")
def one_session(served, directory):
    """Return an assignment, and a credential."""
    work, _ = sessions(served, directory)
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        return work, transport.enroll(Enroll(population=P)).credential


class Client:
    """A TLS connection on which anything can be said."""

    def __init__(self, served, directory):
        context = ssl.create_default_context(cafile=directory / "authority" / "ca.pem")
        port = int(served.url.rpartition(":")[2])
        raw = socket.create_connection(("127.0.0.1", port), timeout=SOON_S)
        self.socket = context.wrap_socket(raw, server_hostname="127.0.0.1")

    def send(self, data):
        self.socket.sendall(data)

    def hear(self, word):
        """Read until the server has said a word."""
        said = b""
        while word not in said:
            piece = self.socket.recv(65536)
            assert piece, said
            said += piece

    def until_cut(self):
        """Return all that the server says until it closes the connection."""
        said = b""
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while piece := self.socket.recv(65536):
                said += piece
        return said

    def close(self):
        self.socket.close()


@pytest.fixture
def client(served, directory):
    with contextlib.closing(Client(served, directory)) as made:
        yield made


@pytest.fixture(autouse=True)
def honest(served, directory):
    """After every attack a device enrols as ever."""
    yield
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        assert transport.enroll(Enroll(population=P)).credential


def failures(said):
    """Return status and code of each answer that is an error."""
    out = []
    for answer in said.split(b"HTTP/1.1 ")[1:]:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head[:3])
        if status != 200:
            out.append((status, msgspec.json.decode(body, type=ErrorBody).code))
            assert b"content-type: application/json" in head.lower()
    return out


def head(path="/v1/enroll", **fields):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\nHost: s\r\n{lines}\r\n".encode()


@pytest.mark.parametrize("begun", [b"P", b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nX: "])
def test_a_head_that_never_ends(client, begun):
    client.send(begun)
    assert failures(client.until_cut()) == [(408, "too_slow")]


def test_a_head_that_drips(client):
    drip(client, b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nX: ", b"y" * 10_000)


def drip(client, begun, rest):
    """Send bytes one by one, each well within the deadline of the whole; return when the server has cut us."""
    end = time.monotonic() + SOON_S
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        client.send(begun)
        for byte in rest:
            assert time.monotonic() < end, "it was listened to for ever"
            client.send(bytes([byte]))
            time.sleep(TIMEOUT_S / 10)
        pytest.fail("it was listened to to the end")


def test_a_connection_on_which_nothing_is_said_is_cut_without_a_word(client):
    assert client.until_cut() == b""


def test_the_second_head_on_a_connection_has_a_deadline_as_well(client):
    client.send(head(Content_Length=len(ENROLL)) + ENROLL)
    client.hear(b"credential")
    client.send(b"POST /v1/enr")
    assert failures(client.until_cut()) == [(408, "too_slow")]


@pytest.mark.parametrize("sent", [0, 10])
def test_a_body_that_never_ends(client, sent):
    client.send(head(Content_Length=100) + ENROLL[:sent])
    assert failures(client.until_cut()) == [(408, "too_slow")]


def test_a_body_that_drips(client):
    drip(client, head(Content_Length=10_000), b" " * 10_000)


def test_a_body_that_goes_on_after_the_answer_is_not_listened_to(client):
    drip(client, head(Content_Length=10_000_000) + b" " * 70_000, b" " * 10_000)


def test_a_body_that_is_larger_than_declared(client):
    client.send(head(Content_Length=len(ENROLL)) + ENROLL + b"and more of it\r\n\r\n")
    said = client.until_cut()
    assert said.count(b"HTTP/1.1 200") == 1 and failures(said) == [(400, "wire_invalid")]


def test_a_body_that_is_smaller_than_declared(client):
    client.send(head(Content_Length=len(ENROLL) + 1) + ENROLL)
    client.socket.unwrap()  # it says goodbye in the middle


def test_a_report_without_a_length_and_one_that_is_too_large(client, one_session):
    work, bearer = one_session
    path, fields = f"/v1/sessions/{work.session}/report", {"Authorization": f"Bearer {bearer}"}
    client.send(head(path, Transfer_Encoding="chunked", **fields) + b"1\r\nx\r\n0\r\n\r\n")
    client.send(head(path, Content_Length=1 << 40, **fields))
    assert failures(client.until_cut()) == [(400, "wire_invalid"), (413, "body_too_large")]


def test_chunks_without_end(client):
    client.send(head(Transfer_Encoding="chunked"))
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        for _ in range(20):
            client.send(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
    assert failures(client.until_cut())[:1] in ([(413, "body_too_large")], [])  # [] if the reset overtook the answer


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
def test_a_compressed_bomb_is_not_even_read(client, encoding):
    client.send(head(Content_Encoding=encoding, Content_Length=1_000_000))
    assert failures(client.until_cut()) == [(415, "content_encoding")]


@pytest.mark.parametrize(
    "sent",
    [b"\x00" * 100 + b"\r\n\r\n", b"GET /\r\n\r\n", b"POST /v1/enroll HTTP/1.1\r\n\r\n",
     b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nContent-Length: -1\r\n\r\n",
     b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
     b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nX: " + b"y" * 100_000,
     b"POST /v1/enroll HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_not_http(client, sent):
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        client.send(sent)
    assert failures(client.until_cut()) == [(400, "wire_invalid")]


def test_forged_and_foreign_credentials_and_replays(served, directory, one_session):
    own = Credentials((directory / "credential.key").read_bytes())
    work, bearer = one_session
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        for credential, error in (
            (Credentials(os.urandom(32)).issue(P, time.time()), UnauthorizedError),
            (own.issue(P, time.time() - 7200), UnauthorizedError),
            (own.issue("other", time.time()), NotFoundError),  # a real credential of another tenant
        ):
            with pytest.raises(error):
                transport.check_in(CheckIn(population=P), credential)
            with pytest.raises(error):
                transport.report(work.session, parts.body(), credential)
        assert transport.report(work.session, parts.body(), bearer).counted
        for replayed in (parts.body(), parts.body(parts.values(seed=9))):
            with pytest.raises(AlreadyCountedError):
                transport.report(work.session, replayed, bearer)


def test_two_hundred_half_open_connections_hold_nobody_up(served, directory):
    port = int(served.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        # Half of them never speak TLS; the others stop in the middle of a head.
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SOON_S))
        held = [stack.enter_context(contextlib.closing(Client(served, directory))) for _ in range(100)]
        for c in held:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                c.send(b"POST /v1/enroll HTTP/1.1\r\nHos")  # the first ones are cut already
        with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
            assert transport.enroll(Enroll(population=P)).credential
        for c in held:
            assert failures(c.until_cut()) in ([(408, "too_slow")], [])


@pytest.mark.parametrize("kind", ["credential", "peer"])
def test_more_requests_than_a_device_makes(tmp_path, kind):
    rounds = f"{QUICK}[limits]\n{kind}_burst = 3\n{kind}_per_s = 0.01\n"
    directory = parts.write_directory(tmp_path / "server", rounds=rounds, plan=world.plan_bytes())
    with (
        parts.served(directory) as served,
        contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport,
    ):
        bearer, answers = transport.enroll(Enroll(population=P)).credential, []
        for _ in range(5):
            try:
                if kind == "peer":
                    transport.enroll(Enroll(population=P))
                else:
                    transport.abandon("nobody", Abandon(reason="x"), bearer)
            except CoveyError as error:
                answers.append(error)
        limited = [e for e in answers if isinstance(e, RateLimitedError)]
        assert len(limited) == (2 if kind == "credential" else 3)
        assert all(50 < e.retry_after_s <= 100 for e in limited)
        if kind == "credential":  # nobody else is concerned
            assert transport.enroll(Enroll(population=P)).credential


def test_one_connection_too_many_is_cut(tmp_path):
    limits = "[limits]\nmax_connections = 5\n"
    directory = parts.write_directory(tmp_path / "server", rounds=QUICK + limits, plan=world.plan_bytes())
    with parts.served(directory) as served, contextlib.ExitStack() as stack:
        held = [stack.enter_context(contextlib.closing(Client(served, directory))) for _ in range(6)]
        assert held[-1].until_cut() == b""
        held[0].send(head(Content_Length=len(ENROLL)) + ENROLL)
        held[0].hear(b"credential")
