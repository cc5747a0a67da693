"""A connection's deadlines, with a transport of the test's own and the hands of the clock in its hand."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from covey.admission.connection import protocol_with
from covey.admission.limits import Limits


class Transport(asyncio.Transport):
    """Remembers what is written; ``unsent`` is what a slow client has not taken yet."""

    def __init__(self):
        super().__init__()
        self.written, self.unsent, self.closed, self.aborted = b"", 0, False, False

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return self.unsent

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def get_extra_info(self, name, default=None):
        return default

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Loop:
    """Time that passes when told."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay_s, call):
        timer = Timer(delay_s, call)
        self.timers.append(timer)
        return timer

    @property
    def pending(self):
        return [t for t in self.timers if not t.cancelled]

    def create_task(self, coroutine):
        return asyncio.get_running_loop().create_task(coroutine)


class Timer:
    def __init__(self, delay_s, call):
        self.delay_s, self.call, self.cancelled = delay_s, call, False

    def cancel(self):
        self.cancelled = True

    def ring(self):
        self.cancelled = True
        self.call()


LIMITS = Limits(header_timeout_s=7.0, body_timeout_s=11.0, min_bytes_per_s=100, max_connections=2)
REQUEST = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connect(state=None):
    config = uvicorn.Config(app, log_config=None, timeout_keep_alive=5)
    connection = protocol_with(LIMITS)(config, state or ServerState(), {}, Loop())
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport, connection.loop


def run(scenario):
    async def main():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(main())


async def answered(connection, request=REQUEST):
    connection.data_received(request)
    while not connection.cycle.response_complete:
        await asyncio.sleep(0)


def test_a_head_has_a_deadline_that_no_byte_moves():
    async def scenario():
        connection, transport, loop = connect()
        (timer,) = loop.pending
        assert timer.delay_s == 7.0
        for byte in REQUEST[:-1]:
            connection.data_received(bytes([byte]))
            assert loop.pending == [timer]
        timer.ring()
        assert b" 408 " in transport.written and b'"too_slow"' in transport.written and transport.closed

    run(scenario)


def test_while_a_request_is_answered_there_is_no_deadline_and_afterwards_that_of_an_idle_connection():
    async def scenario():
        connection, transport, loop = connect()
        await answered(connection)
        assert [t.delay_s for t in loop.pending] == [5] and transport.written.endswith(b"ok")
        connection.data_received(REQUEST[:5])
        assert [t.delay_s for t in loop.pending] == [7.0]
        connection.data_received(REQUEST[5:])
        assert loop.pending == []
        await asyncio.sleep(0)
        connection.connection_lost(None)
        assert loop.pending == []

    run(scenario)


def test_the_rest_of_a_body_is_let_in_for_a_while():
    async def scenario():
        connection, transport, loop = connect()
        await answered(connection, b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(3):
            connection.data_received(b"x")
            (timer,) = loop.pending
            assert timer.delay_s == 11.0
        timer.ring()
        assert transport.aborted

    run(scenario)


@pytest.mark.parametrize(("left", "goes_on"), [([2000, 1500, 900], True), ([2000, 1501], False), ([0], False)])
def test_a_download_goes_on_while_it_moves(left, goes_on):
    async def scenario():
        connection, transport, loop = connect()
        await answered(connection)
        for transport.unsent in left:
            assert not transport.closed
            (timer,) = loop.pending
            timer.ring()
        assert transport.closed is not goes_on and bool(loop.pending) is goes_on

    run(scenario)


def test_one_connection_too_many_is_cut():
    async def scenario():
        state = ServerState()
        transports = [connect(state)[1] for _ in range(3)]
        assert [t.aborted for t in transports] == [False, False, True]

    run(scenario)


def test_garbage_after_a_request_that_is_being_answered_ends_it_without_a_word_in_the_log(caplog):
    async def scenario():
        connection, transport, _ = connect()
        connection.data_received(b"POST / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.data_received(b"no chunk\r\n")
        for _ in range(5):
            await asyncio.sleep(0)
        assert (
            b'"wire_invalid"' in transport.written and transport.closed and transport.written.count(b"HTTP/1.1 4") == 1
        )
        assert not [r for r in caplog.records if r.levelname == "ERROR"]

    run(scenario)
