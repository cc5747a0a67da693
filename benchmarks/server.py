"""What does the server cost beside a bare ASGI application on the same stack, and what does a larger cohort cost it?

``covey serve`` in a process of its own on loopback, TLS 1.3, connections that stay open. Check-ins are answered at once
("come back"), and take the whole way through the selector and the pace; updates are folded into a sum. The bare
application (``benchmarks.bare_server``) reads the same bodies. Turns alternate between the two.

Then a secure sum of 200 sessions of which a tenth is lost at random steps (the checkpoint must be, bit for bit, what
the updates of the survivors lead to), and the memory of a server for a cohort of 100 and of another for 2,000.
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos import applied
from benchmarks.light_device import LightDevice, made_up_update, trusting
from benchmarks.probe import POPULATION
from benchmarks.report import Report
from benchmarks.wide import WidePlan
from covey.device.update import encoded_update, summed_integers
from covey.storage.sqlite import SqliteStorage
from covey.types.tensors import unpack_tensors
from covey.wire.messages import SECURE_STEPS, Assignment, CheckIn, encode_message

_CONNECTIONS = 32
_CONFIG = """port = 0
poll_s = 20.0
max_waiting = {max_waiting}
[round]
goal = {goal}
over_selection = 1.0
min_fraction = {min_fraction}
patience_s = 30.0
report_timeout_s = 300.0
step_timeout_s = {step_timeout_s}
max_rounds = {max_rounds}
[limits]
credential_per_s = 0
peer_per_s = 0
"""


@contextlib.contextmanager
def process(*command: str) -> Iterator[tuple[str, int]]:
    """Run a server until the end of the block; yield its address and its process id."""
    child = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True
    )
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if " on " not in line:
            raise RuntimeError(f"{command[0]} does not start: {line}")
        yield line.split(" on ")[1].split(",")[0], child.pid
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/PID/status")


async def connected(url: str, authority: Path, count: int) -> list[LightDevice]:
    """Return so many devices that have credentials."""
    tls = trusting(authority)
    out = [LightDevice(url, tls, POPULATION) for _ in range(count)]
    for device in out:
        await device.enroll()
    return out


# Check-ins and updates


async def turn(devices: list[LightDevice], path: str, body: bytes, lasts_s: float) -> tuple[float, list[float]]:
    """Let every device send the same request over and over; return requests a second, and how long each took."""
    for device in devices:
        await device.connect()
    began_s, took = time.perf_counter(), []

    async def loop(device: LightDevice) -> None:
        while (sent_s := time.perf_counter()) < began_s + lasts_s:
            status, _ = await device.request("POST", path, body)
            assert status == 200, status
            took.append(time.perf_counter() - sent_s)

    jobs = [asyncio.create_task(loop(device)) for device in devices]
    _, held = await asyncio.wait(jobs, timeout=lasts_s + 0.2)
    seconds = time.perf_counter() - began_s
    for job, device in zip(jobs, devices, strict=True):
        if job in held:  # one of them is in the one place where devices wait
            job.cancel()
            await device.close()
        else:
            job.result()
    return len(took) / min(seconds, lasts_s), took


async def check_ins(
    urls: dict[str, str], pids: dict[str, int], authority: Path, turns: int, lasts_s: float
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float]]:
    """Alternate between the servers; return rates of the turns, latencies, and processor time for each check-in."""
    body = encode_message(CheckIn(population=POPULATION))
    rates: dict[str, list[float]] = {name: [] for name in urls}
    took: dict[str, list[float]] = {name: [] for name in urls}
    used = dict.fromkeys(urls, 0.0)
    own = await connected(urls["covey"], authority, _CONNECTIONS)
    bare = [LightDevice(urls["bare"], trusting(authority), POPULATION) for _ in own]
    for device, other in zip(bare, own, strict=True):
        device.credential = other.credential  # the same bytes for both
    for number in range(turns + 1):
        for name, devices in (("covey", own), ("bare", bare)):
            before_s = processor_s(pids[name])
            rate, times = await turn(devices, "/v1/checkin", body, lasts_s)
            if number:  # the first turn warms up
                rates[name].append(rate)
                took[name] += times
                used[name] += processor_s(pids[name]) - before_s
    for device in (*own, *bare):
        await device.close()
    return rates, took, {name: used[name] / len(took[name]) for name in urls}


async def updates(
    urls: dict[str, str], authority: Path, plan: WidePlan, per_round: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Fold whole cohorts of plain updates; the bare server gets the same bodies in between."""
    rates: dict[str, list[float]] = {name: [] for name in urls}
    took: dict[str, list[float]] = {name: [] for name in urls}
    own = await connected(urls["covey"], authority, per_round)
    bare = [LightDevice(urls["bare"], trusting(authority), POPULATION) for _ in range(_AT_ONCE)]
    update = made_up_update(plan.manifest, 0)
    for _ in range(rounds):
        given = await asyncio.gather(*(d.selected() for d in own))
        body = encoded_update(plan.manifest, given[0], dict(update), bytes(32))
        tokens = [a.session for a in given]
        queues = {
            "covey": [partial(d.report, token, body) for d, token in zip(own, tokens, strict=True)],
            "bare": [partial(bare[i % len(bare)].report, token, body) for i, token in enumerate(tokens)],
        }
        for name, queue in queues.items():
            seconds, times = await _drained(queue)
            rates[name].append(per_round / seconds)
            took[name] += times
    return rates, took


async def _drained(queue: list[Callable[[], Awaitable[None]]]) -> tuple[float, list[float]]:
    """Send everything, a few at a time as the server's pool allows; return the seconds, and how long each took."""
    took: list[float] = []

    async def worker(own: list[Callable[[], Awaitable[None]]]) -> None:
        for send in own:
            began_s = time.perf_counter()
            await send()
            took.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    # Every bare connection is one worker's own.
    await asyncio.gather(*(worker(queue[i::_AT_ONCE]) for i in range(_AT_ONCE)))
    return time.perf_counter() - began_s, took


_AT_ONCE = 8
"""As many bodies as the server has buffers by default; more would be asked to come again."""


def throughput(report: Report, folder: Path) -> None:
    """Check-ins and plain updates beside the bare server."""
    quick = report.args.quick
    plan = WidePlan(25_000 if quick else 250_000, secure=False)
    per_round, rounds = (40, 3) if quick else (100, 4)
    rows: list[tuple[Any, ...]] = []
    for what in ("check-ins", "updates"):
        waiting, goal = (1, 100) if what == "check-ins" else (10_000, per_round)
        config = _CONFIG.format(max_waiting=waiting, goal=goal, min_fraction=1.0, step_timeout_s=30.0, max_rounds=0)
        directory = plan.write(folder / what, config)
        with process("covey", "serve", "--dir", str(directory)) as (url, pid):
            authority = directory / "authority"
            with process("benchmarks.bare_server", str(authority)) as (bare, bare_pid):
                urls, pids = {"covey": url, "bare": bare}, {"covey": pid, "bare": bare_pid}
                if what == "check-ins":
                    turns, lasts_s = (3, 1.0) if quick else (7, 2.0)
                    rates, took, used = asyncio.run(check_ins(urls, pids, authority, turns, lasts_s))
                    report.facts(processor_us_for_a_check_in={k: round(1e6 * v) for k, v in used.items()})
                else:
                    rates, took = asyncio.run(updates(urls, authority, plan, per_round, rounds))
        for name in urls:
            p50, p99 = np.quantile(took[name], (0.5, 0.99)) * 1e3
            rows.append((f"{what}, {name}", statistics.median(rates[name]), float(p50), float(p99)))
        ratio = statistics.median(a / b for a, b in zip(rates["covey"], rates["bare"], strict=True))
        goal_text, holds = (">= 0.6", ratio >= 0.6) if what == "check-ins" else ("none set", None)
        report.goal(f"{what}/s / those of the bare server", ratio, goal_text, holds)
    size = f"{4 * plan.num_params / 1e6:g} MB"
    report.table(
        f"{_CONNECTIONS} connections; updates of {size}, {_AT_ONCE} at a time",
        ("", "per s", "p50, ms", "p99, ms"),
        rows,
    )


# Secure sums


async def secure_sum(
    url: str, directory: Path, plan: WidePlan, count: int, lost: dict[int, str], *, one_for_all: bool = False
) -> tuple[list[int], str, int]:
    """Take ``count`` devices through a sum. With ``one_for_all`` they all send the same update, which is made once.

    Returns:
        Whose masked update was taken, the public seed of the round, and the bytes of messages but for masked updates.
    """
    devices = await connected(url, directory / "authority", count)
    given = await asyncio.gather(*(d.selected() for d in devices))
    masks = asyncio.Semaphore(_AT_ONCE)  # what is masked at a time is in this process's memory

    def made(number: int) -> list[Any]:
        return summed_integers(plan.manifest, given[0], made_up_update(plan.manifest, number), bytes(32))

    same = made(0) if one_for_all else None

    async def one(number: int, device: LightDevice, assignment: Assignment) -> str:
        def inputs() -> list[Any]:
            return made(number) if same is None else same

        return await device.take_part(
            plan.manifest, assignment, inputs, os.urandom, lost_before=lost.get(number, ""), masks=masks
        )

    done = await asyncio.gather(*(one(i, d, a) for i, (d, a) in enumerate(zip(devices, given, strict=True))))
    taken = [i for i, step in enumerate(done) if step in SECURE_STEPS[3:]]
    for device in devices:
        await device.close()
    return taken, given[0].public_seed, sum(d.small_bytes for d in devices)


def memory(report: Report, folder: Path) -> None:
    """Measure the most memory of a server: two sizes of a cohort, two sizes of a model, a server for each."""
    cohorts, sizes = ((20, 80), (10_000, 100_000)) if report.args.quick else ((100, 2000), (10_000, 250_000))
    rows: list[tuple[Any, ...]] = []
    peaks, small = {}, {}
    for num_params in sizes:
        for count in cohorts:
            plan = WidePlan(num_params, secure=True, cohort=count, codec=f"hd|ring:16:{count}:1")
            config = _CONFIG.format(
                max_waiting=10_000, goal=count, min_fraction=0.7, step_timeout_s=280.0, max_rounds=1
            )
            directory = plan.write(folder / f"{num_params}-{count}", config)
            with process("covey", "serve", "--dir", str(directory)) as (url, pid):
                began_s = time.perf_counter()
                taken, _, small[count] = asyncio.run(secure_sum(url, directory, plan, count, {}, one_for_all=True))
                _committed(directory, 1)
                peaks[num_params, count] = peak_bytes(pid)
            row = (4 * num_params / 1e6, count, len(taken), peaks[num_params, count] / 1e6, small[count] / 1e6)
            rows.append((*row, time.perf_counter() - began_s))
            report.note(f"{num_params:,} parameters, {count} devices: {rows[-1][3]:.0f} MB, {rows[-1][5]:.0f} s")
    report.table(
        "memory of a server during a secure sum, all devices connected",
        ("model, MB", "cohort", "in the sum", "most resident, MB", "keys and shares sent, MB", "s"),
        rows,
    )
    few, many = cohorts
    less, more = (peaks[size, many] - peaks[size, few] for size in sizes)
    per_device = less / (many - few)
    held = (more - less) / (4 * (sizes[1] - sizes[0]) * (many - few))
    shares = (small[many] - small[few]) / (many - few)
    report.facts(per_device_kB=round(per_device / 1e3), of_which_keys_and_shares_kB=round(shares / 1e3))
    report.goal("models that the server holds for each further device", held, "<= 0.02", held <= 0.02)


def lossy(report: Report, folder: Path) -> None:
    """Open a sum of 200 sessions, a tenth of them lost."""
    count = 40 if report.args.quick else 200
    chance = random.Random(0)
    lost = {i: chance.choice(SECURE_STEPS[1:]) for i in chance.sample(range(count), count // 10)}
    plan = WidePlan(20_000, secure=True, cohort=count)
    config = _CONFIG.format(max_waiting=10_000, goal=count, min_fraction=0.7, step_timeout_s=10.0, max_rounds=1)
    directory = plan.write(folder / "lossy", config)
    with process("covey", "serve", "--dir", str(directory)) as (url, _):
        began_s = time.perf_counter()
        taken, seed, _ = asyncio.run(secure_sum(url, directory, plan, count, lost))
        checkpoint = _committed(directory, 1)
        seconds = time.perf_counter() - began_s
    before = unpack_tensors(plan.manifest.params, plan.checkpoint)
    wanted = applied(plan.manifest, [made_up_update(plan.manifest, i) for i in taken], before, seed)
    text = ", ".join(f"{sum(1 for s in lost.values() if s == step)} before {step}" for step in SECURE_STEPS[1:])
    report.note(f"{count} sessions, lost: {text}; {len(taken)} in the sum; {seconds:.1f} s")
    report.goal(
        "sessions whose sum is opened, and right", len(taken), f"the survivors of {count}", checkpoint == wanted
    )


def _committed(directory: Path, number: int) -> bytes:
    """Wait for a round; return its checkpoint."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        storage = SqliteStorage(directory / "data")
        rows = storage.rounds(POPULATION)
        with contextlib.closing(storage):
            if rows and rows[-1].status != "committed":
                raise RuntimeError(f"the round was abandoned: {rows[-1].reason}")
            if len(rows) >= number:
                return storage.blob(rows[-1].checkpoint)
        time.sleep(0.05)
    raise RuntimeError("no round was committed")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("throughput", "memory", "lossy"), help="one of the three parts")


def main() -> None:
    report = Report(__doc__, _configure)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))  # a connection for each device, on both sides
    report.facts(seeds="0 for who is lost; timing is real")
    parts = {"throughput": throughput, "lossy": lossy, "memory": memory}
    with tempfile.TemporaryDirectory(prefix="covey-server-") as name:
        for part, run in parts.items():
            if report.args.only in (None, part):
                run(report, Path(name))
    report.finish()


if __name__ == "__main__":
    main()
