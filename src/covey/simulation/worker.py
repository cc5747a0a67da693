"""What runs in a worker process: the device side of many sessions, and one shard of the aggregation.

Updates never leave a worker: they are folded into its own shard as they are made, and only the shard's sum is handed
over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from covey.simulation.messages import POPULATION, Blobs, Ended, Evaluate, RunSession, Setup
from covey.types.errors import CoveyError
from covey.types.rng import derive_seed
from covey.types.segments import SegmentSum
from covey.types.tensors import sha256_hex, unpack_tensors
from covey.wire.messages import Abandoned, Reported

__all__ = ["Worker", "make_trainer"]

_KEPT_BLOBS = 2


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
        self._blobs = {sha256_hex(setup.plan): setup.plan}
        self._old: list[str] = []
        self.trainer: Trainer
        self.trainer = make_trainer(recipe.task, setup.settings, self.dataset)

    def receive(self, message: Any) -> Any:
        """Take one message and return its answer."""
        match message:
            case RunSession():
                return self.run(message)
            case Blobs(blobs=blobs):
                self._keep(blobs)
                return None
            case OpenShard():
                self.aggregator.receive(message, 0.0)
                return None
            case CloseShard():
                return self._close(message)
            case DiscardShard():
                self.aggregator.receive(message, 0.0)
                return None
            case Evaluate():
                return self._evaluate(message)
        raise AssertionError(f"a worker does not take {type(message).__name__}")

    def run(self, message: RunSession) -> Ended:
        """Run one device's session to its end, through the device's own state machine."""
        # Of the whole name and not of the order of use: a device's shuffling does not depend on who else took part.
        assignment = message.assignment
        seed = derive_seed(self.setup.seed, "device", message.device, assignment.round, assignment.phase)
        noise = AesCtr(derive_seed(self.setup.seed, "noise", assignment.session), private=False)
        session = Session(self.policy, seed=seed, verified=self.verified, noise=noise)
        effect = session.start()
        bytes_up = bytes_down = 0
        while not isinstance(effect, Finished):
            match effect:
                case SendCheckIn():
                    effect = session.answered(assignment)
                case FetchBlob(ref=ref, what=what):
                    bytes_down += ref.num_bytes if what != "plan" else 0
                    effect = session.fetched(self._blobs[ref.sha256])
                case Train(job=job):
                    try:
                        examples = self.dataset.train(self._clients[message.device])
                        result = self.trainer.run(job, examples, never)
                    except CoveyError as error:
                        effect = session.failed(error)
                    else:
                        effect = session.trained(result)
                case SendReport(session=token, body=body):
                    bytes_up += len(body)
                    answer = self._answer(ReportArrived("", token, body))
                    effect = session.reported(answer) if isinstance(answer, Reported) else session.failed(answer)
                case SendAbandon(session=token, message=abandon):
                    self._answer(AbandonArrived("", token, abandon.reason))
                    effect = session.abandoned()
        match effect.outcome:
            case Counted(num_steps=steps):
                return Ended(num_steps=steps, bytes_up=bytes_up, bytes_down=bytes_down)
            case GaveUp(reason=reason, error=failure):
                return Ended(reason, str(failure or ""), bytes_down=bytes_down)
            case Lost(error=failure):
                return Ended(failure.code, str(failure), bytes_down=bytes_down)
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

    def _keep(self, blobs: Mapping[str, bytes]) -> None:
        for name, data in blobs.items():
            if name not in self._blobs:
                self._blobs[name] = data
                self._old.append(name)
        while len(self._old) > _KEPT_BLOBS * max(1, len(blobs)):
            del self._blobs[self._old.pop(0)]

    def _evaluate(self, message: Evaluate) -> dict[str, float]:
        params = unpack_tensors(self.plan.manifest.params, message.params)
        held_out = {k: v[message.start : message.stop] for k, v in self.dataset.pooled_test().items()}
        return self.evaluator.evaluate(params, held_out)


def make_trainer(task: Callable[[], Any], settings: Settings, dataset: FederatedDataset) -> Trainer:
    """Return what :data:`covey.recipes.recipe.TRAINERS` calls ``settings.trainer``."""
    if settings.trainer == "onnx":
        return OnnxTrainer()
    from covey.simulation.jax_trainer import JaxTrainer

    stepwise = {"jax": None, "jax-step": True, "jax-loop": False}[settings.trainer]
    return JaxTrainer(task(), local_halves(settings, dataset), stepwise=stepwise)
