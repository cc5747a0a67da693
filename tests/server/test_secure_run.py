"""Secure rounds over TLS: ``covey serve`` in a process of its own, agents with homes of their own."""

import asyncio
import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from device import world

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.transport import HttpTransport
from covey.storage.memory import MemoryStorage
from covey.types.errors import CoveyError
from covey.wire.messages import SECURE_STEPS

from . import parts
from .app import P, assert_failed, run

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

QUICK = "patience_s = 0.2\nover_selection = 1.0\nstep_timeout_s = 1.5\nreport_timeout_s = 20.0\n"
PACE = Pace(first_s=0.05, most_s=0.2, jitter=0.0)


class Vanished(BaseException):
    """The device's process died; nobody catches this on the way."""


class Vanishing(HttpTransport):
    """A connection of a device that dies before it sends a step."""

    def __init__(self, url, ca_file, before):
        super().__init__(url, ca_file)
        self._before = before

    def send_step(self, session, step, body, credential):
        if step == self._before:
            raise Vanished
        return super().send_step(session, step, body, credential)


@contextlib.contextmanager
def devices(served, directory, tmp_path, vanish=(), count=6, name="d"):
    """Let ``count`` agents run; ``vanish`` are the steps before which the first of them die."""
    vanish, agents = [*vanish, *[None] * (count - len(vanish))], []
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        for i, before in enumerate(vanish):
            home = stack.enter_context(DeviceHome(tmp_path / f"{name}{i}"))
            home.examples.add_many("points", world.points(7 + i, seed=i), world.SCHEMA)
            policy = world.policy(accept_plain=False, min_cohort=3)
            transport = Vanishing(served.url, directory / "authority" / "ca.pem", before)
            agents.append(DeviceAgent(home, served.url, policy, transport=transport, pace=PACE))
        jobs = [pool.submit(a.run) for a in agents]
        try:
            yield agents
        finally:
            for agent in agents:
                agent.stop()
            for job in jobs:
                with contextlib.suppress(Vanished, CoveyError):
                    job.result(timeout=60)


def wait_for(served, directory, holds):
    """Return the status as soon as ``holds`` of it."""
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        parts.wait_until(lambda: holds(transport.status(P)), timeout_s=60)
        return transport.status(P)


@pytest.fixture(scope="module")
def _plan():
    return world.secure_plan_bytes()


@pytest.fixture
def directory(tmp_path, _plan):
    return parts.write_directory(tmp_path / "server", goal=6, rounds=QUICK, plan=_plan, min_fraction=0.5)


def test_rounds_in_which_the_server_sees_only_the_sum(directory, tmp_path):
    with parts.served(directory) as served, devices(served, directory, tmp_path) as agents:
        status = wait_for(served, directory, lambda s: s.round >= 2)
        assert status.mode == "secure"
        for row in status.rounds[:2]:
            assert (row.status, row.selected, row.reported, row.lost) == ("committed", 6, 6, 0)
            assert 0.3 < row.metrics["loss"] < 1.0 and row.bytes_up > 6 * 32
        parts.wait_until(lambda: all(a.summary.counted for a in agents))


def test_masks_come_off_in_worker_processes(tmp_path, _plan):
    directory = parts.write_directory(
        tmp_path / "server", goal=6, rounds=QUICK, plan=_plan, min_fraction=0.5, extra="unmask_workers = 2"
    )
    with parts.served(directory) as served, devices(served, directory, tmp_path, vanish=["mask"]):
        (row, *_) = wait_for(served, directory, lambda s: s.round).rounds
        assert (row.status, row.reported) == ("committed", 5)
        family = psutil.Process(served.pid).children(recursive=True)
        assert len(family) >= 2
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("step", SECURE_STEPS[1:])
def test_a_device_that_dies_before_any_step_is_not_missed(directory, tmp_path, step):
    with parts.served(directory) as served, devices(served, directory, tmp_path, vanish=[step]):
        (row, *_) = wait_for(served, directory, lambda s: s.rounds).rounds
        assert row.status == "committed" and row.reported == (6 if step == "unmask" else 5)


def test_a_device_that_never_gets_ready_is_waited_for_until_the_rounds_deadline(tmp_path, _plan):
    rounds = QUICK.replace("report_timeout_s = 20.0", "report_timeout_s = 4.0")
    directory = parts.write_directory(tmp_path / "server", goal=6, rounds=rounds, plan=_plan, min_fraction=0.5)
    with parts.served(directory) as served, devices(served, directory, tmp_path, vanish=["ready"]):
        (row, *_) = wait_for(served, directory, lambda s: s.rounds).rounds
        assert (row.status, row.selected, row.reported, row.lost) == ("committed", 6, 5, 1) and row.seconds >= 4.0


def test_too_many_deaths_open_nothing_and_the_next_round_goes_on(directory, tmp_path):
    with parts.served(directory) as served:
        with devices(served, directory, tmp_path, vanish=["mask"] * 3):
            (row, *_) = wait_for(served, directory, lambda s: s.rounds).rounds
            assert (row.status, row.reason, row.reported, row.metrics) == ("abandoned", "secagg_threshold", 0, {})
        with devices(served, directory, tmp_path, name="e"):
            status = wait_for(served, directory, lambda s: s.round)
            assert status.rounds[-1].reported == 6


def test_a_killed_server_forgets_its_sums_and_resumes(tmp_path, _plan):
    directory = parts.write_directory(tmp_path / "server", goal=6, rounds=QUICK, plan=_plan, min_fraction=0.5)
    with parts.served(directory) as served:
        port = int(served.url.rpartition(":")[2])
        config = directory / "server.toml"
        config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
        with devices(served, directory, tmp_path):
            before = wait_for(served, directory, lambda s: s.round >= 1).round
            served.send_signal(signal.SIGKILL)
            served.wait(30)
            with parts.served(directory) as again:
                assert int(again.greeting.rpartition(" ")[2]) >= before
                wait_for(again, directory, lambda s: s.round > before)


def test_a_signal_ends_the_server_at_once_whoever_waits_for_a_sum(directory, tmp_path):
    with parts.served(directory) as served, devices(served, directory, tmp_path, vanish=["ready"], count=6) as agents:
        wait_for(served, directory, lambda s: s.state == "reporting")
        parts.wait_until(lambda: any(a.summary.bytes_down for a in agents))
        time.sleep(0.5)  # five of them wait for the sixth, which is gone
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
        # No word of a grace that ran out: nobody was waited for.
        assert served.stderr.read() == ""


def secure_storage():
    return parts.begin(MemoryStorage(), world.secure_plan_bytes())


def in_memory(scenario, **options):
    run(scenario, storage=secure_storage(), rounds={"goal": 3, "over_selection": 1.0}, **options)


def test_a_wait_without_an_answer_is_short_and_empty():
    async def scenario(s):
        first, *_ = await s.sessions(3)
        assert (await s.post(f"/v1/sessions/{first}/secure/ready", b"")).json() == {"step": "ready"}
        got = await s.client.get(f"/v1/sessions/{first}/secure/ready", headers=s.headers)
        assert (got.status_code, got.content) == (204, b"")
        assert not s.service._tickets._waiting

    in_memory(scenario, poll_s=0.05)


def test_requests_that_do_not_belong_here():
    async def scenario(s):
        first, *_ = await s.sessions(3)
        assert_failed(await s.report(first), 400, "wire_invalid", "one of plain mode")
        assert_failed(await s.post(f"/v1/sessions/{first}/secure/nothing", b""), 404, "not_found", "ready, advertise")
        assert_failed(await s.post("/v1/sessions/nobody/secure/ready", b""), 404, "session_unknown")
        for method in ("GET", "POST"):
            got = await s.client.request(method, f"/v1/sessions/{first}/secure/ready")
            assert_failed(got, 401, "unauthorized")
        got = await s.client.get(f"/v1/sessions/{first}/secure/ready", headers=s.headers)
        assert_failed(got, 409, "illegal_transition")
        too_long = bytes(s.service.max_body_bytes + 1)
        assert_failed(await s.post(f"/v1/sessions/{first}/secure/mask", too_long), 413, "body_too_large")
        await asyncio.sleep(0)

    in_memory(scenario)


def test_a_plain_population_has_no_secure_steps():
    async def scenario(s):
        first, _ = await s.sessions()
        for method in ("GET", "POST"):
            got = await s.client.request(method, f"/v1/sessions/{first}/secure/ready", headers=s.headers)
            assert_failed(got, 400, "wire_invalid", "one of secure mode")

    run(scenario)
