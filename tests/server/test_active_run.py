"""Rounds against an active server over TLS: ``covey serve``, ``covey authority serve``, and agents that may die."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from device import world

from covey.admission.tokens import issue_token
from covey.algorithms.algorithm import Aggregate
from covey.algorithms.registry import server_half
from covey.device.agent import DeviceAgent
from covey.device.authority import PinnedAuthority
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.trainer import OnnxTrainer
from covey.device.transport import HttpTransport
from covey.plans.plan import unpack_plan
from covey.plans.signing import generate_owner_key, load_public_key, public_key_pem
from covey.server.opening import opened_reals
from covey.types.errors import AttestationError, CoveyError, EnrolmentError
from covey.types.segments import SegmentSum
from covey.types.tensors import pack_tensors, unpack_tensors
from covey.wire.messages import ACTIVE_STEPS, Certify

from . import parts
from .app import P
from .test_secure_run import QUICK, Vanished, Vanishing, wait_for

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

PACE = Pace(first_s=0.05, most_s=0.2, jitter=0.0)
BACKEND = generate_owner_key()


@contextlib.contextmanager
def certifying(directory):
    """Run ``covey authority serve`` in a process of its own; yield it, with its ``url``, ``key`` and ``ca``."""
    child = subprocess.Popen(
        [sys.executable, "-m", "covey", "authority", "serve", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with child:
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            child.url = line.split(" on ")[1].strip()
            child.key = authority_key(directory)
            child.ca = directory / "tls" / "ca.pem"
            yield child
        finally:
            child.kill()


def authority_key(directory):
    return load_public_key((directory / "authority.pub").read_bytes(), "test").public_bytes_raw()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Return the directory of an authority that wants tokens."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "app.pub").write_bytes(public_key_pem(BACKEND.public_key()))
    directory = folder / "dir"
    command = ["authority", "init", str(directory), "--population", P, "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "covey", *command, "--attestation-key", str(folder / "app.pub")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return directory


def token(audience="authority", expires_in_s=600):
    return issue_token(BACKEND, audience=audience, population=P, expires_at=int(time.time()) + expires_in_s)


def pinned(running, **changes):
    fields = {"ca_file": running.ca, "attestation": token, **changes}
    return PinnedAuthority(running.url, fields.pop("key", running.key), P, **fields)


class Recording:
    """A trainer that remembers what it made."""

    def __init__(self):
        self._trainer, self.made = OnnxTrainer(), []

    def run(self, job, examples, should_stop=lambda: False):
        result = self._trainer.run(job, examples, should_stop)
        self.made.append({name: np.array(values) for name, values in result.segments.items()})
        return result


@contextlib.contextmanager
def devices(served, running, directory, tmp_path, vanish=()):
    """Let six agents run; ``vanish`` are the steps before which the first of them die. Yield their trainers."""
    vanish, agents, trainers = [*vanish, *[None] * (6 - len(vanish))], [], [Recording() for _ in range(6)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        for i, before in enumerate(vanish):
            home = stack.enter_context(DeviceHome(tmp_path / f"d{i}"))
            home.examples.add_many("points", world.points(7 + i, seed=i), world.SCHEMA)
            agent = DeviceAgent(
                home,
                served.url,
                world.policy(accept_plain=False, min_cohort=3, authority=running.key),
                transport=Vanishing(served.url, directory / "authority" / "ca.pem", before),
                trainer=trainers[i],
                pace=PACE,
                authority=pinned(running),
                attestation=lambda: token("server"),
            )
            agents.append(agent)
        jobs = [pool.submit(a.run) for a in agents]
        try:
            yield trainers
        finally:
            for agent in agents:
                agent.stop()
            for job in jobs:
                with contextlib.suppress(Vanished, CoveyError):
                    job.result(timeout=60)


@pytest.fixture
def directory(tmp_path, authority):
    plan = world.active_plan_bytes(authority=authority_key(authority))
    out = parts.write_directory(
        tmp_path / "server",
        goal=6,
        rounds=f'{QUICK}\n[attestation]\nkey = "app.pub"\n',
        extra='enrolment = "token"',
        plan=plan,
        min_fraction=0.5,
    )
    (out / "app.pub").write_bytes(public_key_pem(BACKEND.public_key()))
    return out


def expected_checkpoint(directory, made):
    """Return what the first round makes of these updates, folded in the clear."""
    manifest = unpack_plan((directory / "plan.covey").read_bytes()).manifest
    total = SegmentSum(manifest.layout(0))
    for values in made:
        total.fold_reals(values)
    reals = opened_reals(manifest, 0, total, "")
    algorithm = server_half(manifest.algorithm.name, manifest.algorithm.settings)
    state = algorithm.init(unpack_tensors(manifest.params, world.checkpoint()))
    after = algorithm.phases[0].apply(state, Aggregate.opened(total, manifest.phases[0], manifest.metrics, reals))
    return pack_tensors(after.params, manifest.params)


@pytest.mark.parametrize("step", [None, *ACTIVE_STEPS[1:]])
def test_whoever_dies_before_any_step_the_sum_is_exactly_that_of_the_survivors(directory, authority, tmp_path, step):
    with parts.served(directory) as served, certifying(authority) as running:
        vanish = [step] if step else []
        with devices(served, running, directory, tmp_path, vanish) as trainers:
            (row, *_) = wait_for(served, directory, lambda s: s.rounds).rounds
            masked = step in (None, "consistency", "unmask")  # its input is in the sum, whatever becomes of it
            assert (row.status, row.reported) == ("committed", 6 if masked else 5)
            counted = trainers if masked else trainers[1:]
            wanted = expected_checkpoint(directory, [t.made[0] for t in counted])
            with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
                ref = world.ref(wanted, "checkpoints")
                assert ref.sha256 == row.checkpoint
                assert b"".join(transport.fetch(ref, "")) == wanted


def test_too_many_deaths_open_nothing(directory, authority, tmp_path):
    with parts.served(directory) as served, certifying(authority) as running:
        with devices(served, running, directory, tmp_path, ["consistency"] * 3):  # three signatures of the four needed
            (row, *_) = wait_for(served, directory, lambda s: s.rounds).rounds
        assert (row.status, row.reason, row.reported) == ("abandoned", "secagg_threshold", 0)


def test_the_authority_certifies_whoever_has_a_token_once_and_nobody_else(authority):
    with certifying(authority) as running:
        identity = pinned(running).identity(int(time.time()))
        assert identity.certificate.expires_at > time.time() + 3000
        assert "Identity(...)" in repr(identity)  # its key is never printed
        one = token()
        first, second = pinned(running, attestation=lambda: one), pinned(running, attestation=lambda: one)
        assert first.identity(int(time.time())) is first.identity(int(time.time()))
        with pytest.raises(AttestationError):  # a token is one device
            second.identity(int(time.time()))
        for bad in ("", token("server"), token(expires_in_s=-1), one[:-2]):
            with pytest.raises(AttestationError):
                pinned(running, attestation=lambda bad=bad: bad).identity(int(time.time()))


def test_a_device_believes_no_other_authority(authority):
    with certifying(authority) as running:
        other = pinned(running, key=generate_owner_key().public_key().public_bytes_raw())
        with pytest.raises(EnrolmentError):
            other.identity(int(time.time()))
        with pytest.raises(EnrolmentError):  # by this device's clock everything has expired
            pinned(running).identity(1 << 40)


def test_the_answer_to_a_repeated_request_is_the_same_certificate(authority):
    with certifying(authority) as running, contextlib.closing(HttpTransport(running.url, running.ca)) as transport:
        message = Certify(population=P, identity_key="ab" * 32, attestation=token())
        assert transport.certify(message) == transport.certify(message)
        for changed in ("", "ab" * 31, "no hex", "ab" * 33):
            with pytest.raises(CoveyError) as refused:
                transport.certify(Certify(population=P, identity_key=changed, attestation=token()))
            assert refused.value.code == "wire_invalid"
        with pytest.raises(CoveyError) as refused:
            transport.certify(Certify(population="other", identity_key="ab" * 32, attestation=token()))
        assert refused.value.code == "not_found"
    # Nothing was written: the directory is as it was made.
    names = {p.name for p in authority.iterdir()}
    assert names == {"authority.key", "authority.pub", "authority.toml", "attestation.pub", "tls"}
