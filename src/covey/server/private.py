"""Differential privacy on the server: charge before a sum is opened, add the server's noise, divide by a constant.

The algorithm that applies the result sees an ordinary aggregate, whose weight is the public denominator and whose
metrics are absent.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from covey.algorithms.algorithm import Aggregate, opened_header
from covey.plans.manifest import CLIP, CLIP_COUNT, Manifest, NoiseTerms
from covey.plans.manifest import Phase as PhasePlan
from covey.privacy.accounting import Spent
from covey.privacy.adaptive import adapted_clip
from covey.privacy.dp_ftrl import TreeNoise
from covey.privacy.ledger import admission, encode_loss
from covey.privacy.mechanism import Mechanism
from covey.privacy.randomness import NamedRandomness, Randomness, refuse_seeded
from covey.server.messages import public_seed
from covey.server.opening import opened_units
from covey.storage.interface import PrivacyCharge, Storage, TaskRecord
from covey.types.errors import BudgetExhaustedError, PrivacyError, UsageError
from covey.types.segments import SegmentSum
from covey.types.tensors import Tensors, TensorSpec, unflatten_tensors

__all__ = ["PrivateSums"]

_CLIP_STATE = "privacy.clip"
_TREE_STATE = "privacy.tree_sums"
"""How many sums a simulation's trees had: it draws their noise again. A deployment stores nothing of a tree."""


class PrivateSums:
    """The sums of one population under its plan's noise. Law: a sum is charged before anything of it is read."""

    def __init__(
        self, record: TaskRecord, manifest: Manifest, source: Randomness | None, *, simulated: bool = False
    ) -> None:
        """Take up a plan's promise.

        Args:
            record: of the task that the plan is executed for.
            manifest: of a plan with noise.
            source: of the server's noise.
            simulated: whether seeded noise is accepted.

        Raises:
            SeededNoiseError: seeded noise outside a simulation.
            PrivacyError: a promise that cannot be kept.
        """
        terms = manifest.privacy
        assert isinstance(terms.noise, NoiseTerms)
        self.mechanism = Mechanism.of(terms.noise, terms.min_cohort)
        if source is None:
            raise PrivacyError("server", expected="a source of noise", got="none")
        if not simulated:
            refuse_seeded(source, "server")
        if self.mechanism.kind == "tree" and len(manifest.phases) != 1:
            raise PrivacyError("privacy: tree", expected="an algorithm with one phase", got=f"{len(manifest.phases)}")
        self.clip = self.mechanism.clip
        self._population, self._plan = record.population, record.plan
        self._manifest, self._source = manifest, source
        self._named = source if simulated and isinstance(source, NamedRandomness) else None
        self._tree: TreeNoise | None = None
        self._num_tree_sums = 0  # of all trees; each has num_rounds of them

    def hyper(self, hyper: Mapping[str, float]) -> dict[str, float]:
        """Return the per-round values with this round's clip.

        Raises:
            UsageError: the settings name a clip themselves.
        """
        if CLIP in hyper:
            raise UsageError(f"round: hyper.{CLIP}", expected="no value: the plan and its rounds set it", got="one")
        return {**hyper, CLIP: self.clip}

    def begin(self, storage: Storage, hyper: Mapping[str, float], extra: Tensors) -> Tensors:
        """Take up where the last round ended.

        Args:
            storage: with the population's ledger.
            hyper: the settings' per-round values.
            extra: what was stored with the last round; the clip, and what a simulation keeps, are taken out of it.

        Returns:
            the rest of ``extra``, the algorithm's own.

        Raises:
            BudgetExhaustedError: the population has spent what it may: there is nothing to begin.
            UsageError: the settings name a clip themselves.
        """
        if self._named is not None and _TREE_STATE in extra:
            self._draw_tree_again(int(extra[_TREE_STATE].item()))
        self.check_affordable(storage)
        self.hyper(hyper)
        if _CLIP_STATE in extra:
            # A former plan may have had other bounds, or an adapting clip where this one's is fixed.
            stored = float(extra[_CLIP_STATE].item())
            self.clip = min(max(stored, self.mechanism.clip_low), self.mechanism.clip_high)
        return {k: v for k, v in extra.items() if k not in (_CLIP_STATE, _TREE_STATE)}

    def state(self, extra: Tensors) -> Tensors:
        """Return the algorithm's extra tensors with the clip of the next round, and what a simulation keeps."""
        if self.mechanism.adaptive:
            extra = {**extra, _CLIP_STATE: np.array(self.clip, np.float64)}
        if self._named is not None and self.mechanism.kind == "tree":
            extra = {**extra, _TREE_STATE: np.array(self._num_tree_sums, np.float64)}
        return extra

    def check_affordable(self, storage: Storage) -> None:
        """Raise BudgetExhaustedError unless one more round of all phases may be opened."""
        new = self._cost() * (1 if self.mechanism.kind == "tree" else len(self._manifest.phases))
        admission(new, self.mechanism.budget, self.mechanism.delta)(storage.privacy_spent(self._population))

    def affordable(self, storage: Storage) -> bool:
        """Return whether one more round may be opened."""
        try:
            self.check_affordable(storage)
        except BudgetExhaustedError:
            return False
        return True

    def charge(self, storage: Storage, phase: int, round_number: int, attempt: str) -> None:
        """Charge a sum. In secure mode before its masks come off, in plain mode before it is read.

        Args:
            storage: whose ledger is charged.
            phase: of the round.
            round_number: counted from 1.
            attempt: the attempt's name.

        Raises:
            BudgetExhaustedError: the population's budget does not allow it.
            StorageError: the charge could not be stored.
        """
        cost = self._cost()
        charges = [PrivacyCharge(self._plan, round_number, phase, attempt, encode_loss(s.loss), s.times) for s in cost]
        if charges:
            budget = admission(cost, self.mechanism.budget, self.mechanism.delta)
            storage.charge_privacy(self._population, charges, budget)

    def open(self, storage: Storage, total: SegmentSum, phase: int, round_number: int, attempt: str) -> Aggregate:
        """Charge a sum and read it; see :meth:`charge` and :meth:`read`. If the charge fails, nothing was read."""
        self.charge(storage, phase, round_number, attempt)
        return self.read(total, phase, attempt)

    def read(self, total: SegmentSum, phase: int, attempt: str) -> Aggregate:
        """Read a sum that was charged; at the end of a round with an adapting clip, set the next one.

        Args:
            total: of enough devices; it is cleared.
            phase: of the round.
            attempt: the attempt's name, from which the round's public seed follows.

        Raises:
            LayoutError: the counter is not the number of contributions.
        """
        plan = self._manifest.phases[phase]
        opened_header(total)  # the counter is public; a uniform weight and absent metrics say nothing more
        num_devices = total.num_folded
        units = self._noised(total, plan)
        if self.mechanism.adaptive:
            count = int(total.integers(CLIP_COUNT)[0])
            if not self.mechanism.distributed:
                count += int(self.mechanism.count_noise_sampler().draw(1, self._source)[0])
            following = adapted_clip(self.mechanism, self.clip, count)
        else:
            following = self.clip
        total.clear()
        reals = opened_units(self._manifest, phase, units, self.clip, public_seed(attempt))
        segments = {s.name: _cut(reals[s.name], s.tensors) for s in plan.segments}
        self.clip = following
        return Aggregate(num_devices, float(self.mechanism.denominator), {}, segments)

    def _cost(self) -> tuple[Spent, ...]:
        """Return what the next sum costs: a tree is paid for whole, before its first sum."""
        if self.mechanism.kind == "tree" and self._num_tree_sums % self.mechanism.num_rounds:
            return ()
        return tuple(Spent(loss, 1) for loss in self.mechanism.losses(self._manifest.num_opened))

    def _noised(self, total: SegmentSum, plan: PhasePlan) -> dict[str, NDArray[np.float64]]:
        out = {s.name: total.integers(s.name).astype(np.float64) for s in plan.segments}
        if self.mechanism.kind == "tree":
            noise, start = self._next_tree_noise(), 0
            for vector in out.values():
                vector += noise[start : start + len(vector)]
                start += len(vector)
        elif not self.mechanism.distributed:
            sampler = self.mechanism.noise()
            for vector in out.values():
                vector += sampler.draw(len(vector), self._source)
        assert all(math.isfinite(float(v.sum())) for v in out.values())
        return out

    def _next_tree_noise(self) -> NDArray[np.float64]:
        number, self._num_tree_sums = self._num_tree_sums, self._num_tree_sums + 1
        if number % self.mechanism.num_rounds == 0:
            dim = sum(s.num_summed for s in self._manifest.phases[0].segments)
            self._tree = TreeNoise(self.mechanism.noise(), dim)
        assert self._tree is not None
        return self._tree.next_round(self._source if self._named is None else self._named.named("tree", number))

    def _draw_tree_again(self, num_sums: int) -> None:
        """Bring a simulation's tree where it was: the noise of the sums that it had is drawn once more."""
        self._num_tree_sums = num_sums - num_sums % self.mechanism.num_rounds
        while self._num_tree_sums < num_sums:
            self._next_tree_noise()


def _cut(vector: NDArray[np.float64], specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[np.float64]]:
    wide = tuple(TensorSpec(s.name, s.shape, "float64") for s in specs)
    return {k: np.asarray(v, np.float64) for k, v in unflatten_tensors(vector, wide).items()}
