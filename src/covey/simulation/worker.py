"""What runs in a worker process: the device side of many sessions, and one shard of the aggregation.

Updates never leave a worker: they are folded into its own shard as they are made, and only the shard's sum is handed
over.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.data.dataset import FederatedDataset
from covey.device.effects import Counted, FetchBlob, Finished, GaveUp, Lost, SendAbandon, SendCheckIn, SendReport, Train
from covey.device.evaluate import Evaluator
from covey.device.policy import OwnerPolicy
from covey.device.private import PrivacyFloor
from covey.device.session import Session
from covey.device.trainer import OnnxTrainer, Trainer, never
from covey.device.verified import Verified
from covey.plans.plan import unpack_plan
from covey.privacy.randomness import AesCtr
from covey.recipes.prepare import local_halves
from covey.recipes.recipe import Settings, load_recipe
from covey.server.aggregator import Aggregator
from covey.server.messages import AbandonArrived, CloseShard, DiscardShard, OpenShard, Reply, ReportArrived, ShardClosed
from covey.simulation.messages import POPULATION, Blobs, Ended, Evaluate, EvaluateDevice, RunSession, Setup
from covey.simulation.states import DeviceStates
from covey.types.errors import CoveyError
from covey.types.rng import derive_seed
from covey.types.segments import SegmentSum
from covey.types.tensors import Tensors, sha256_hex, unpack_tensors
from covey.wire.framing import part_sizes
from covey.wire.messages import Abandoned, Reported

__all__ = ["Worker", "make_trainer"]


@dataclass
class Worker:
    """The device side of a simulation in one process. Not thread-safe."""

    setup: Setup
    verified: Verified = field(default_factory=lambda: Verified(max_tensors=4))

    def __post_init__(self) -> None:
        setup = self.setup
        self.dataset: FederatedDataset
        recipe = load_recipe(setup.source)
        self.dataset = recipe.data(setup.settings, setup.seed)
        self.plan = unpack_plan(setup.plan)
        self.evaluator = Evaluator(self.plan)
        self.aggregator = Aggregator(POPULATION, self.plan.manifest)
        self.policy = OwnerPolicy(
            Ed25519PublicKey.from_public_bytes(setup.owner_key),
            POPULATION,
            accept_plain=True,
            min_cohort=1,
            privacy=PrivacyFloor(simulated=True),
        )
        self._clients = self.dataset.client_ids
        self._plan_name = sha256_hex(setup.plan)
        self._blobs = {self._plan_name: setup.plan}
        self._states = DeviceStates(Path(setup.states))
        self.trainer: Trainer
        self.trainer = make_trainer(recipe.task, setup.settings, self.dataset)

    def receive(self, message: Any) -> Any:
        """Take one message and return its answer."""
        match message:
            case RunSession():
                return self.run(message)
            case Blobs(blobs=blobs, keep=keep):
                kept = {k: v for k, v in self._blobs.items() if k in keep or k == self._plan_name}
                self._blobs = {**kept, **blobs}
                return None
            case OpenShard():
                self.aggregator.receive(message, 0.0)
                return None
            case CloseShard():
                return self._close(message)
            case DiscardShard():
                self.aggregator.receive(message, 0.0)
                return None
            case Evaluate(params=params, start=start, stop=stop):
                return self._evaluate(params, {k: v[start:stop] for k, v in self.dataset.pooled_test().items()})
            case EvaluateDevice(params=params, device=device):
                client = self._clients[device]
                own = self.dataset.test(client)
                held_out = bool(own) and len(next(iter(own.values()))) > 0
                return held_out, self._evaluate(params, own if held_out else self.dataset.train(client))
        raise AssertionError(f"a worker does not take {type(message).__name__}")

    def run(self, message: RunSession) -> Ended:
        """Run one device's session to its end, through the device's own state machine."""
        # Of the whole name and not of the order of use: a device's shuffling does not depend on who else took part.
        assignment = message.assignment
        seed = derive_seed(self.setup.seed, "device", message.device, assignment.round, assignment.phase)
        noise = None
        if self.plan.manifest.privacy.noise is not None:
            noise = AesCtr(derive_seed(self.setup.seed, "noise", assignment.session), private=False)
        session = Session(self.policy, seed=seed, verified=self.verified, noise=noise)
        phase = self.plan.manifest.phases[assignment.phase]
        if message.joins:
            joining = OpenShard(message.joins, assignment.phase, (assignment.session,), assignment)
            self.aggregator.receive(joining, 0.0)
        effect = session.start()
        traffic: Counter[str] = Counter()
        kept: Tensors = {}
        while not isinstance(effect, Finished):
            match effect:
                case SendCheckIn():
                    effect = session.answered(assignment)
                case FetchBlob(ref=ref, what=what):
                    if what != "plan":
                        traffic[f"down: {what}"] += ref.num_bytes
                    effect = session.fetched(self._blobs[ref.sha256])
                case Train(job=job):
                    try:
                        examples = self.dataset.train(self._clients[message.device])
                        own = self._states.load(message.device, assignment.round, phase)
                        result = self.trainer.run(dataclasses.replace(job, kept=own), examples, never)
                        kept = result.kept
                    except CoveyError as error:
                        effect = session.failed(error)
                    else:
                        effect = session.trained(result)
                case SendReport(session=token, body=body):
                    traffic.update(_parts(body))
                    answer = self._answer(ReportArrived("", token, body))
                    effect = session.reported(answer) if isinstance(answer, Reported) else session.failed(answer)
                case SendAbandon(session=token, message=abandon):
                    self._answer(AbandonArrived("", token, abandon.reason))
                    effect = session.abandoned()
        match effect.outcome:
            case Counted(num_steps=steps):
                self._states.save(message.device, assignment.round, phase, kept)
                return Ended(num_steps=steps, traffic=traffic)
            case GaveUp(reason=reason, error=failure):
                return Ended(reason, str(failure or ""), traffic=traffic)
            case Lost(error=failure):
                return Ended(failure.code, str(failure), traffic=traffic)
        raise AssertionError("an assignment leads to one of these")

    def _answer(self, message: ReportArrived | AbandonArrived) -> Any:
        """Return what the aggregator answers the device; what it tells the coordinator is in :class:`Ended`."""
        for envelope in self.aggregator.receive(message, 0.0):
            if isinstance(envelope.message, Reply):
                answer = envelope.message.message
                assert isinstance(answer, Reported | Abandoned | CoveyError)
                return answer
        raise AssertionError("every request is answered")

    def _close(self, message: CloseShard) -> SegmentSum | None:
        for envelope in self.aggregator.receive(message, 0.0):
            if isinstance(envelope.message, ShardClosed):
                return envelope.message.total
        return None

    def _evaluate(self, params: bytes, examples: Tensors) -> dict[str, float]:
        return self.evaluator.evaluate(unpack_tensors(self.plan.manifest.params, params), examples)


def _parts(body: bytes) -> dict[str, int]:
    """Return how many bytes of a report are which segment's."""
    sizes = {f"up: {name}": size for name, size in part_sizes(body).items()}
    return {**sizes, "up: framing": len(body) - sum(sizes.values())}


def make_trainer(task: Callable[[], Any], settings: Settings, dataset: FederatedDataset) -> Trainer:
    """Return what :data:`covey.recipes.recipe.TRAINERS` calls ``settings.trainer``."""
    if settings.trainer == "onnx":
        return OnnxTrainer()
    from covey.simulation.jax_trainer import JaxTrainer

    stepwise = {"jax": None, "jax-step": True, "jax-loop": False}[settings.trainer]
    return JaxTrainer(task(), local_halves(settings, dataset), stepwise=stepwise)
