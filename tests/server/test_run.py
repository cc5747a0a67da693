"""``covey serve`` as a process of its own, over TLS: whole rounds, signals, ``kill -9``, and what cannot be served."""

import contextlib
import os
import random
import signal
import socket
import ssl
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from device import world

from covey.device.transport import HttpTransport
from covey.server.config import load_config
from covey.server.credentials import Credentials
from covey.server.population import load_population
from covey.server.run import serve
from covey.server.service import Service
from covey.storage.sqlite import SqliteStorage
from covey.types.errors import PlanFormatError, PortInUseError, SessionUnknownError, UsageError
from covey.wire.messages import CheckIn, ComeBack, Enroll

from . import parts

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

P = parts.POPULATION
QUICK = "patience_s = 0.0\nover_selection = 1.0\n"


@pytest.fixture(scope="module")
def _plan():
    return world.plan_bytes()  # built once for the file


@pytest.fixture
def directory(tmp_path, _plan):
    return parts.write_directory(tmp_path / "server", rounds=QUICK)


@contextlib.contextmanager
def device(served, directory):
    """Yield a transport and a credential."""
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        yield transport, transport.enroll(Enroll(population=P)).credential


def check_in(served, directory):
    with device(served, directory) as (transport, credential):
        return transport.check_in(CheckIn(population=P), credential)


def sessions(served, directory, count=2):
    """Let ``count`` devices check in at once; return their assignments."""
    with ThreadPoolExecutor(count) as pool:  # its futures carry what a killed server makes a device raise
        return list(pool.map(lambda _: check_in(served, directory), range(count)))


def play_round(served, directory):
    work = sessions(served, directory)
    with device(served, directory) as (transport, credential):
        for seed, assignment in enumerate(work):
            body = parts.body(parts.values(seed=seed))
            assert transport.report(assignment.session, body, credential).counted
        wanted = work[0].round
        parts.wait_until(lambda: transport.status(P).round == wanted)
        return transport.status(P)


def test_rounds_over_tls_and_the_blobs_that_they_need(directory):
    with parts.served(directory) as served:
        assert served.greeting == f"serving population '{P}' on {served.url}, round 0"
        first = play_round(served, directory)
        second = play_round(served, directory)
        assert (first.round, second.round) == (1, 2) and first.checkpoint != second.checkpoint
        with device(served, directory) as (transport, credential):
            assert b"".join(transport.fetch(second.plan, credential)) == world.plan_bytes()
            assert len(b"".join(transport.fetch(second.checkpoint, credential))) == len(world.checkpoint())
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
        lines = served.stdout.read().splitlines()
        assert [line.split(":")[0].split(",")[0] for line in lines] == ["round 1 committed", "round 2 committed"]
        assert served.stderr.read() == ""
    for path in (directory / "credential.key", directory / "authority" / "server.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_older_tls_and_other_authorities_are_refused(directory):
    with parts.served(directory) as served:
        host, port = "127.0.0.1", int(served.url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=directory / "authority" / "ca.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        for bad in (context, ssl.create_default_context()):
            with socket.create_connection((host, port)) as s, pytest.raises(ssl.SSLError):
                bad.wrap_socket(s, server_hostname=host)
        context = ssl.create_default_context(cafile=directory / "authority" / "ca.pem")
        got = httpx.get(f"{served.url}/v1/populations/{P}", verify=context)
        assert got.status_code == 200 and "server" not in got.headers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_ends_the_server_cleanly_whoever_is_connected(directory, number):
    # One device stays connected and idle, one waits for a round.
    with parts.served(directory) as served, device(served, directory), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(check_in, served, directory)
        with device(served, directory) as (transport, _):
            parts.wait_until(lambda: transport.status(P).waiting == 1)
        served.send_signal(number)
        assert served.wait(30) == 0
        answer = waiting.result(timeout=30)
        # No word of a grace that ran out: nothing was left to wait for.
        assert served.stderr.read() == "" and served.stdout.read() == ""
    assert answer == ComeBack(retry_after_s=1.0, reason="restarting")


def test_after_kill_9_in_a_round_it_resumes_at_the_last_committed_one(directory):
    with parts.served(directory) as served:
        committed = play_round(served, directory)
        work = sessions(served, directory)
        assert {a.round for a in work} == {2}
        with device(served, directory) as (transport, credential):
            assert transport.report(work[0].session, parts.body(), credential).counted
        served.kill()
        assert served.wait(30) == -signal.SIGKILL
    with parts.served(directory) as served:
        assert served.greeting.endswith(", round 1")
        with device(served, directory) as (transport, _):
            status = transport.status(P)
            assert (status.round, status.checkpoint, status.rounds) == (1, committed.checkpoint, committed.rounds)
            # The credential of before the kill is as good as a new one; the session is not.
            with pytest.raises(SessionUnknownError):
                transport.report(work[1].session, parts.body(), credential)
        again = play_round(served, directory)
        assert again.round == 2 and [r.status for r in again.rounds] == ["committed", "committed"]


def test_killed_at_random_instants_it_always_comes_back(directory):
    chance, last = random.Random(), 0
    for _ in range(3):
        with parts.served(directory) as served:
            assert int(served.greeting.rpartition(" ")[2]) >= last
            killer = threading.Timer(chance.uniform(0.0, 0.5), served.kill)
            killer.start()
            with contextlib.suppress(Exception):
                while True:
                    last = play_round(served, directory).round
            killer.join()
    storage = SqliteStorage(directory / "data")
    record = storage.load(P)
    assert record.round >= last and len(storage.rounds(P)) == record.round
    assert len(storage.blob(record.checkpoint)) == len(world.checkpoint())
    storage.close()


def refuse(directory, kind, match):
    with pytest.raises(kind, match=match) as caught:
        serve(directory, load_config(directory / "server.toml"), on_ready=lambda listening: pytest.fail("it serves"))
    return caught.value


def test_a_port_in_use_is_named_and_nothing_is_made(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        directory = parts.write_directory(tmp_path / "server", port=port)
        before = sorted(p.name for p in directory.iterdir())
        error = refuse(directory, PortInUseError, f"127.0.0.1:{port}: expected a free port, got one in use")
        assert "choose another port" in error.hint
        assert sorted(p.name for p in directory.iterdir()) == before


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(tmp_path, host):
    directory = parts.write_directory(tmp_path / "server", extra=f'host = "{host}"')
    refuse(directory, UsageError, "host: expected an address of this machine")


@pytest.mark.parametrize("name", ["plan.covey", "plan.sig", "checkpoint.bin"])
def test_a_missing_file_is_named_and_a_later_start_is_as_good_as_new(directory, name):
    data = (directory / name).read_bytes()
    (directory / name).unlink()
    assert "covey init" in refuse(directory, UsageError, f"{name}: expected a readable file").hint
    (directory / name).write_bytes(data)
    storage = SqliteStorage(directory / "data")
    assert load_population(storage, directory, load_config(directory / "server.toml")).round == 0
    storage.close()


def test_a_checkpoint_of_another_model_begins_no_population(directory):
    (directory / "checkpoint.bin").write_bytes(bytes(4))
    refuse(directory, UsageError, "checkpoint.bin: expected the plan's parameters, 32 bytes, got 4 bytes")
    storage = SqliteStorage(directory / "data")
    assert storage.load(P) is None
    storage.close()


def test_a_plan_that_is_none_is_refused(directory):
    (directory / "plan.covey").write_bytes(b"no plan")
    refuse(directory, PlanFormatError, "expected a plan archive")


def test_a_population_keeps_the_plan_that_it_was_begun_with(directory):
    config = load_config(directory / "server.toml")
    storage = SqliteStorage(directory / "data")
    record = load_population(storage, directory, config)
    assert load_population(storage, directory, config) == record
    (directory / "plan.sig").unlink()
    (directory / "checkpoint.bin").unlink()
    assert load_population(storage, directory, config) == record  # these begin a population; afterwards nobody asks
    storage.close()
    (directory / "plan.covey").write_bytes(world.plan_bytes("fedsgd"))
    assert "a directory, of its own" in refuse(directory, UsageError, "task 'train' was begun with").hint


def test_settings_that_cannot_work_with_the_plan_are_refused(tmp_path):
    directory = parts.write_directory(tmp_path / "server", goal=1)
    refuse(directory, UsageError, "at least the plan's min_cohort, 2")


def test_a_certificate_that_is_none_is_refused(directory):
    authority = directory / "authority"
    authority.mkdir()
    for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
        (authority / name).write_text("not a certificate")
    refuse(directory, UsageError, "expected a certificate and its key")


def test_a_directory_that_cannot_be_written(directory):
    (directory / "data").write_text("a file")
    with pytest.raises(Exception, match="expected a file that can be read and written"):
        serve(directory, load_config(directory / "server.toml"), on_ready=lambda listening: None)


def test_a_service_can_be_made_without_a_network(directory):
    storage = SqliteStorage(directory / "data")
    config = load_config(directory / "server.toml")
    load_population(storage, directory, config)
    service = Service(storage, config, Credentials(os.urandom(32)))
    assert service.status(P, 0).state == "paused" and service.max_body_bytes == len(parts.body())
    storage.close()
    assert time.time() - service.now_s() < 60
