"""An evaluation against personal models over TLS: real agents, some with a tuned model, in both modes."""

import contextlib
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from device import world
from device.release_server import ReleaseServer

from covey.device.agent import DeviceAgent
from covey.device.comparison import hashes
from covey.device.evaluate import evaluate
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.pace import Pace
from covey.device.personal import PersonalModel
from covey.device.released import ReleaseStore
from covey.device.transport import HttpTransport, tls_context
from covey.device.tuned import personal_params
from covey.plans.evaluation import DIFFERENCE_LIMIT, DIFFERENCE_SCALE, evaluation_plan
from covey.plans.plan import unpack_plan
from covey.plans.signing import sign_plan
from covey.types.errors import CoveyError
from covey.types.tensors import sha256_hex, unpack_tensors

from . import parts

P = parts.POPULATION
PLANS = {"plain": world.plan_bytes, "secure": world.secure_plan_bytes}
QUICK = "patience_s = 0.2\nover_selection = 1.0\nreport_timeout_s = 20.0\n"
PACE = Pace(first_s=0.05, most_s=0.2, jitter=0.0)
COUNT, NUM_TUNED = 4, 2


class Recording(httpx.HTTPTransport):
    """A network that remembers all that was sent into it."""

    def __init__(self, ca_file):
        super().__init__(verify=tls_context(ca_file))
        self.sent = []

    def handle_request(self, request):
        lines = [f"{request.method} {request.url}", *(f"{k}: {v}" for k, v in request.headers.items())]
        self.sent.append("\n".join(lines).encode() + b"\n\n" + request.read())
        return super().handle_request(request)


def examples_of(number, count, seed):
    """Return a person's examples; every second one labels them the other way round."""
    points = world.points(count, seed)
    return {**points, "y": points["y"] ^ (number % 2)}


def tune(home, number):
    """Give a device a release, examples to train on, and the model that it tunes to them."""
    server = ReleaseServer()
    server.publish(1, world.checkpoint(), plan_bytes=world.changed(world.plan(), max_examples=400))
    model = PersonalModel(home.path, world.OWNER.public_key(), P, clock=lambda: 1000.0)
    model.refresh(server)
    home.examples.add_many("points", examples_of(number, 300, number), world.SCHEMA)
    assert model.tune(home.examples).used


@contextlib.contextmanager
def devices(served, ca_file, tmp_path, mode):
    """Let agents run until the end of the block; yield their homes and networks."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(COUNT) as pool:
        homes, networks, agents = [], [], []
        for i in range(COUNT):
            homes.append(home := stack.enter_context(DeviceHome(tmp_path / f"device{i}")))
            if i < NUM_TUNED:
                tune(home, i)
            home.examples.add_many("points", examples_of(i, 40, 100 + i), world.SCHEMA, split="test")
            networks.append(network := Recording(ca_file))
            transport = stack.enter_context(contextlib.closing(HttpTransport(served.url, ca_file, network=network)))
            policy = world.policy(accept_plain=mode == "plain", min_cohort=2 if mode == "plain" else 3)
            agents.append(DeviceAgent(home, served.url, policy, transport=transport, pace=PACE))
        jobs = [pool.submit(a.run) for a in agents]
        try:
            yield homes, networks
        finally:
            for agent in agents:
                agent.stop()
            for job in jobs:
                with contextlib.suppress(CoveyError):
                    job.result(timeout=60)


def own_params(home, manifest):
    return personal_params(ReleaseStore(home.path, world.OWNER.public_key(), P), manifest)


def differences(homes, manifest):
    """Return what each device with a tuned model must find, by the evaluator alone."""
    found = []
    for home in homes:
        if not (own := own_params(home, manifest)):
            continue
        examples = home.examples.query(manifest.examples, at_most=manifest.max_examples)
        report = {k: v[hashes(examples) >= 0.8] for k, v in examples.items()}
        models = (unpack_tensors(manifest.params, world.checkpoint()), own)
        sums = [evaluate(world.plan(), params, report) for params in models]
        found.append(sums[0]["loss"] / sums[0]["weight"] - sums[1]["loss"] / sums[1]["weight"])
    return np.array(found)


def pieces(value):
    """Return what would stand in a message with these numbers: eight bytes, which no chance puts there."""
    flat = value.reshape(-1)
    return [*(pair.tobytes() for pair in flat.reshape(-1, 2)), *(number.tobytes() for number in flat.astype("<f8"))]


def create(directory, served, path):
    """Create the evaluation task as an administrator does."""
    done = subprocess.run(
        [sys.executable, "-m", "covey", "task", "create", "measure", "--kind", "evaluate", "--plan", str(path),
         "--checkpoint", sha256_hex(world.checkpoint()), "--rounds", "1", "--dir", str(directory),
         "--server", served.url],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_the_mean_difference_is_opened_and_no_personal_model_leaves(tmp_path, mode):
    data = evaluation_plan(unpack_plan(PLANS[mode]()), against="personal")
    manifest = unpack_plan(data).manifest
    (path := tmp_path / "personal.covey").write_bytes(data)
    (tmp_path / "personal.covey.sig").write_text(sign_plan(world.OWNER, P, sha256_hex(data)).hex())
    directory = parts.write_directory(tmp_path / "server", goal=COUNT, rounds=QUICK, plan=PLANS[mode]())
    ca_file = directory / "authority" / "ca.pem"

    def measured(status):
        return [r for r in status.rounds if (r.task, r.status) == ("measure", "committed")]

    with parts.served(directory) as served:
        create(directory, served, path)
        with devices(served, ca_file, tmp_path, mode) as (homes, networks):
            with contextlib.closing(HttpTransport(served.url, ca_file)) as transport:
                parts.wait_until(lambda: measured(transport.status(P)), timeout_s=60)
                (row,) = measured(transport.status(P))
            expected = differences(homes, manifest)
            tuned = [own_params(home, manifest) for home in homes]
    assert len(expected) == NUM_TUNED and row.reported == COUNT
    # A header keeps 20 bits behind the point; differences are scaled by 2**10, their squares by 2**20.
    assert row.metrics["compared"] == NUM_TUNED
    assert row.metrics["difference"] == pytest.approx(expected.mean(), abs=2.0**-30)
    assert row.metrics["difference_squared"] == pytest.approx((expected**2).mean(), abs=2.0**-40)
    assert all(0.01 < d < DIFFERENCE_LIMIT for d in expected) and expected[0] != expected[1]  # each is better here
    assert row.metrics["loss"] > 0 and row.checkpoint == sha256_hex(world.checkpoint())
    sent = [body for network in networks for body in network.sent]
    assert len(sent) > 2 * COUNT
    # What leaves is recorded: the difference stands in a plain body, and in no masked one.
    leaving = struct.pack("<d", expected[0] * DIFFERENCE_SCALE)
    assert any(leaving in body for body in sent) == (mode == "plain")
    for piece in (p for params in tuned[:NUM_TUNED] for value in params.values() for p in pieces(value)):
        assert not any(piece in body or piece.hex().encode() in body for body in sent)
    (said,) = {e.summary for e in Ledger.of_home(homes[0].path).entries() if e.task == "measure" and e.summary}
    assert said.endswith("compared with the model tuned on this device")
