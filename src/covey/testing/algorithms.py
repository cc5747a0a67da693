"""The contract of :class:`covey.algorithms.algorithm.Algorithm`, as checks to run on any server half.

::

    @pytest.mark.parametrize("check", algorithm_checks(), ids=lambda check: check.__name__)
    def test_my_algorithm_keeps_the_contract(check):
        check(Subject(my_algorithm(settings), plan.manifest))

A check plays rounds with random contributions of the plan's layout, folded as the aggregator folds them. A broken law
is an AssertionError that says which.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerState
from covey.plans.manifest import Manifest
from covey.storage.interface import decode_named, encode_named
from covey.types.errors import UpdateNotFiniteError
from covey.types.rng import generator
from covey.types.segments import HEADER, SegmentSum
from covey.types.tensors import Tensors, pack_tensors, specs_of, unpack_tensors

__all__ = ["Check", "Subject", "algorithm_checks"]

Contribution = dict[str, NDArray[np.float64]]
"""What one device sends, by segment, weighted."""

_STEP = 2.0**-8


@dataclass(frozen=True, slots=True)
class Subject:
    """A server half, and the manifest of a plan that was built with its device half."""

    server: Algorithm
    manifest: Manifest

    def begin(self) -> ServerState:
        """Return the state before the first round, with random parameters."""
        rng = generator(0, "params")
        return self.server.init({s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in self.manifest.params})

    def contribution(self, phase: int, device: int, *, scale: float = 1.0, weight: int = 3) -> Contribution:
        """Return what a device sends: multiples of 1/256, which fixed point holds exactly; positive steps."""
        rng = generator(1, "device", device, phase)
        metrics = np.arange(1.0, len(self.manifest.metrics) + 1.0)
        out: Contribution = {HEADER: np.concatenate([[1.0, float(weight)], metrics])}
        for s in self.manifest.phases[phase].segments:
            values = rng.integers(1, 64, s.length) * _STEP * min(1.0, s.max_delta) * scale
            signs = rng.choice([-1.0, 1.0], s.length) if s.length > 1 else 1.0
            out[s.name] = values * signs * (weight if s.weighting == "examples" else 1)
        return out

    def aggregate(self, phase: int, contributions: Sequence[Contribution], shards: int = 1) -> Aggregate:
        """Fold contributions in the given order, dealt out to so many shards, and open the sum."""
        sums = [SegmentSum(self.manifest.layout(phase)) for _ in range(shards)]
        for i, contribution in enumerate(contributions):
            sums[i % shards].fold_reals(contribution)
        for other in sums[1:]:
            sums[0].merge(other)
        return Aggregate.opened(sums[0], self.manifest.phases[phase], self.manifest.metrics)

    def round(self, state: ServerState, devices: Sequence[int], *, shards: int = 1, scale: float = 1.0) -> ServerState:
        """Return the state after one round of all phases."""
        for phase, step in enumerate(self.server.phases):
            sent = [self.contribution(phase, d, scale=scale, weight=1 + d % 5) for d in devices]
            state = step.apply(state, self.aggregate(phase, sent, shards))
        return state


Check = Callable[[Subject], None]


def algorithm_checks() -> tuple[Check, ...]:
    """Return every check of this module."""
    return (
        phases_are_those_of_the_plan,
        the_broadcast_is_what_the_plan_declares,
        the_sum_of_one_device_is_its_own_update,
        the_weight_of_a_single_device_does_not_matter,
        order_and_shards_do_not_matter,
        nothing_sent_moves_nothing,
        the_state_survives_storage,
        a_resumed_run_is_the_same_run,
        parameters_keep_their_specs,
        numbers_that_are_not_finite_are_refused,
    )


def phases_are_those_of_the_plan(subject: Subject) -> None:
    """Check that server and plan have as many phases, and one name."""
    _expect(len(subject.server.phases) == len(subject.manifest.phases), "a server phase for each phase of the plan")
    _expect(subject.server.name == subject.manifest.algorithm.name, "the plan names the server half")


def the_broadcast_is_what_the_plan_declares(subject: Subject) -> None:
    """Check that what each phase broadcasts has the plan's specs, in the first round and later."""
    state = subject.begin()
    for _ in range(2):
        for phase, step in enumerate(subject.server.phases):
            _expect(specs_of(step.shared(state)) == subject.manifest.phases[phase].shared, "shared as declared")
        state = subject.round(state, [1, 2])


def the_sum_of_one_device_is_its_own_update(subject: Subject) -> None:
    """Check that a sum of one holds that device's numbers, segment by segment."""
    for phase, plan in enumerate(subject.manifest.phases):
        sent = subject.contribution(phase, 7)
        opened = subject.aggregate(phase, [sent])
        _expect(opened.num_devices == 1 and opened.weight == sent[HEADER][1], "the header comes through")
        for s in plan.segments:
            flat = np.concatenate([opened.segments[s.name][t.name].ravel() for t in s.tensors])
            _expect(
                np.abs(flat - sent[s.name]).max() <= _resolution(subject, phase, s.name), f"{s.name} as it was sent"
            )


def the_weight_of_a_single_device_does_not_matter(subject: Subject) -> None:
    """Check that a mean over one device is that device, whether it has one example or many."""
    ends = []
    for weight in (1, 4):
        state = subject.begin()
        for phase, step in enumerate(subject.server.phases):
            state = step.apply(state, subject.aggregate(phase, [subject.contribution(phase, 3, weight=weight)]))
        ends.append(state)
    _expect(_bits(ends[0]) == _bits(ends[1]), "a mean over one device is that device")


def order_and_shards_do_not_matter(subject: Subject) -> None:
    """Check that the same devices give the same bits in any order and any number of shards."""
    state, devices = subject.begin(), list(range(6))
    expected = _bits(subject.round(state, devices))
    for order, shards in ((devices[::-1], 1), ([3, 0, 5, 1, 4, 2], 2), (devices, 6)):
        _expect(_bits(subject.round(state, order, shards=shards)) == expected, "any order, any shards: the same bits")


def nothing_sent_moves_nothing(subject: Subject) -> None:
    """Check that devices that did not change the model leave a fresh state's parameters where they are."""
    state = subject.begin()
    after = subject.round(state, [1, 2, 3], scale=0.0)
    _expect(_bits(ServerState(after.params)) == _bits(ServerState(state.params)), "no change leaves the parameters")


def the_state_survives_storage(subject: Subject) -> None:
    """Check that what a round is stored as comes back bit for bit."""
    state = subject.round(subject.begin(), [1, 2, 3])
    _expect(_bits(_stored(subject, state)) == _bits(state), "stored and read: the same bits")


def a_resumed_run_is_the_same_run(subject: Subject) -> None:
    """Check that a run that is stored and taken up again between any two rounds ends with the same bits."""
    straight = resumed = subject.begin()
    for number in range(4):
        devices = [number, number + 1, number + 2]
        straight = subject.round(straight, devices)
        resumed = subject.round(_stored(subject, resumed), devices)
    _expect(_bits(resumed) == _bits(straight), "resumed: the same bits")


def parameters_keep_their_specs(subject: Subject) -> None:
    """Check that a round changes the parameters, and neither their names, shapes nor dtypes."""
    state = subject.begin()
    after = subject.round(state, [1, 2, 3])
    _expect(specs_of(after.params) == subject.manifest.params, "names, shapes and dtypes stay")
    _expect(_bits(ServerState(after.params)) != _bits(ServerState(state.params)), "an update moves the model")
    _expect(specs_of(after.extra) == specs_of(state.extra), "the state keeps its specs from the first round on")


def numbers_that_are_not_finite_are_refused(subject: Subject) -> None:
    """Check that an infinity, and a sum without weight, raise UpdateNotFiniteError in every phase."""
    for phase, step in enumerate(subject.server.phases):
        good = subject.aggregate(phase, [subject.contribution(phase, 1)])
        first = subject.manifest.phases[phase].segments[0].name
        broken: Mapping[str, NDArray[np.float64]] = {k: v * np.inf for k, v in good.segments[first].items()}
        segments = {**good.segments, first: broken}
        for aggregate in (
            Aggregate(1, good.weight, good.metrics, segments),
            Aggregate(1, 0.0, good.metrics, good.segments),
        ):
            try:
                with np.errstate(all="ignore"):
                    step.apply(subject.begin(), aggregate)
            except UpdateNotFiniteError:
                continue
            raise AssertionError("broken law: what is not finite, or has no weight, is refused")


def _stored(subject: Subject, state: ServerState) -> ServerState:
    params = unpack_tensors(subject.manifest.params, pack_tensors(state.params, subject.manifest.params))
    return ServerState(params, decode_named(encode_named(state.extra)))


def _bits(state: ServerState) -> bytes:
    tensors: Tensors = {f"params.{k}": v for k, v in state.params.items()}
    return encode_named({**tensors, **{f"extra.{k}": v for k, v in state.extra.items()}})


def _resolution(subject: Subject, phase: int, name: str) -> float:
    fraction_bits = next(s.fraction_bits for s in subject.manifest.layout(phase) if s.name == name)
    return float(2.0 ** -(fraction_bits + 1))


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(f"broken law: {law}")
