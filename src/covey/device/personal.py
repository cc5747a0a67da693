"""The model that an application asks: the newest release at once and offline, or a better one tuned on this device.

What :meth:`PersonalModel.tune` trains stays here. It is used only while it beats the release on examples that it was
not trained on (:mod:`covey.device.comparison`): a person who has few examples, or ordinary ones, gets the release.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.comparison import Part, split
from covey.device.evaluate import Evaluator
from covey.device.examples import ExampleStore
from covey.device.predictor import Predictor
from covey.device.released import ReleaseSource, ReleaseStore, Served
from covey.device.runtime import GraphCache
from covey.device.trainer import OnnxTrainer, never
from covey.device.tuned import TunedModel
from covey.device.tuning import Tuning, best_candidate
from covey.types.errors import NoReleaseError
from covey.types.tensors import Array, Tensors

__all__ = ["Comparison", "PersonalModel"]

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metric sums of both models on the report part, by the plan's names. They are this device's own business."""

    num_examples: int
    release: dict[str, float]
    personal: dict[str, float]


class PersonalModel:
    """The model of one population on this device. Safe to share between threads."""

    def __init__(
        self,
        home: Path,
        owner_key: Ed25519PublicKey,
        population: str,
        *,
        clock: Callable[[], float] = time.time,
        graphs: GraphCache | None = None,
    ) -> None:
        """Load what is here; nothing is sent. The device's own agent, if one runs, fetches releases from now on.

        Args:
            home: the device's state directory, whether or not an agent has it open.
            owner_key: the key that the device pins.
            population: whose model.
            clock: gives seconds since the Unix epoch.
            graphs: loaded graphs to share.
        """
        self._home, self._clock = home, clock
        self._store = ReleaseStore(home, owner_key, population, clock=clock)
        self._store.want()
        self._tuned = TunedModel(self._store)
        self._graphs = graphs or GraphCache()
        self._lock = threading.RLock()
        self._served: Served | None = None
        self._personal: Tensors | None = None
        self._predictor: Predictor | None = None
        self._seen: object = None
        self._look_at_s = 0.0
        self._load()

    @property
    def version(self) -> int:
        """The version of the release at hand; 0: there is none."""
        return self._served.release.version if self._served else 0

    @property
    def is_personal(self) -> bool:
        """Whether the tuned model serves."""
        return self._personal is not None

    def predict(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs for one example (``inputs`` without a batch dimension), each without it too.

        A release that another process has stored is taken up within a second.

        Raises:
            NoReleaseError: there is no release on this device yet.
            ExampleError: an input that is missing or of another shape or dtype.
        """
        if time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + _LOOK_S
            if self._stamp() != self._seen:
                self._load()
        if (predictor := self._predictor) is None:
            raise _no_release()
        return predictor(inputs)

    def refresh(self, source: ReleaseSource) -> bool:
        """Fetch the newest release; return whether there was a new one. It serves at once.

        A model that was tuned from the one before is not used any more: :meth:`tune` again.

        Raises:
            NotFoundError, ReleaseRefusedError, PlanError, BlobHashError, TransportError, StorageError: see
                :meth:`covey.device.released.ReleaseStore.refresh`. The release before it goes on serving.
        """
        with self._lock:
            served = self._store.refresh(source)
            if served is not None:
                self._load()
        return served is not None

    def tune(
        self,
        examples: ExampleStore | None = None,
        *,
        should_stop: Callable[[], bool] = never,
        seed: bytes | None = None,
    ) -> Tuning:
        """Fine-tune on this device's own examples, and use the result only if it beats the release on the gate part.

        Args:
            examples: where they are; None: the store of the state directory.
            should_stop: asked between chunks of training, as in a session.
            seed: 32 bytes for the order of examples; None: the release's, so that equal examples give equal models.

        Raises:
            NoReleaseError: there is nothing to start from.
            TrainingStopped: ``should_stop`` said so; what served before goes on serving.
            ExampleError, StorageError: examples that cannot be read.
        """
        if (served := self._served) is None:
            raise _no_release()
        parts = self._parts(served, examples)
        trainer, evaluator = OnnxTrainer(graphs=self._graphs), self._evaluator(served)
        order = seed or bytes.fromhex(served.release.checkpoint)
        tuning, params = best_candidate(served, parts, trainer, evaluator, order, should_stop)
        with self._lock:
            if params is not None:
                self._tuned.keep(served, params)
            else:
                self._tuned.forget()
            self._load()
        return tuning

    def compare(self, examples: ExampleStore | None = None) -> Comparison:
        """Return how both models do on the report part, which neither training nor the decision has seen.

        Raises:
            NoReleaseError: there is none.
        """
        if (served := self._served) is None:
            raise _no_release()
        report, evaluator = self._parts(served, examples)["report"], self._evaluator(served)
        if not len(report):
            return Comparison(0, {}, {})
        release = evaluator.evaluate(served.params, report.examples)
        personal = release if self._personal is None else evaluator.evaluate(self._personal, report.examples)
        return Comparison(len(report), release, personal)

    def _parts(self, served: Served, examples: ExampleStore | None) -> dict[str, Part]:
        manifest = served.plan.manifest
        if examples is not None:
            return split(examples.query(manifest.examples, at_most=manifest.max_examples))
        with ExampleStore.of_home(self._home, clock=self._clock) as store:
            return split(store.query(manifest.examples, at_most=manifest.max_examples))

    def _evaluator(self, served: Served) -> Evaluator:
        return Evaluator(served.plan, graphs=self._graphs)

    def _load(self) -> None:
        """Take up what is stored."""
        with self._lock:
            self._seen = self._stamp()
            served = self._store.load()
            personal = self._tuned.load(served) if served else None
            self._served, self._personal = served, personal
            if served is None:
                self._predictor = None
            else:
                params = served.params if personal is None else personal
                self._predictor = Predictor(self._graphs.graph(served.plan, "predict"), served.plan.manifest, params)

    def _stamp(self) -> object:
        return self._store.stamp(), self._tuned.stamp()


def _no_release() -> NoReleaseError:
    return NoReleaseError(
        "personal model",
        expected="a release on this device",
        got="none yet",
        hint="refresh() fetches the newest one; a server has none before the first candidate passed its gates",
    )
