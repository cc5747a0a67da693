"""The manifest: everything a device must know about a plan besides its graphs. Data, never code.

A plan holds four kinds of ONNX graph (opset <= 21, default domain):

``train`` and ``gradient``
    a *chunk* of local steps as one Scan over a dynamic number of steps S. Inputs ``state.*`` (what the loop carries),
    ``metrics.*`` and ``step`` (carried too, so that results do not depend on how steps are cut into chunks),
    ``params.*`` (only ``gradient``: the parameters stay fixed), ``shared.*`` (broadcast, constant), ``batch.*``
    ``[S, B, ...]``, ``mask`` ``bool[S, B]``, ``hyper.*`` (float32 scalars) and ``key`` ``uint32[2]``. Outputs:
    ``next.state.*``, ``next.metrics.*``, ``next.step``. A step whose mask is all false returns its state bit for bit.
``begin`` and ``finish``
    ``begin``: ``params.*``, ``shared.*`` -> ``state.*``. ``finish``: ``state.*``, ``params.*``, ``shared.*``,
    ``totals.*`` (float32 scalars: examples, weight, loss) -> ``<segment>.*``.
``eval``
    ``params.*``, ``metrics.*``, ``batch.*``, ``mask`` -> ``next.metrics.*``: sums and counts, never means.
``predict``
    ``params.*``, ``input.*`` -> ``output.*``.

A plan of several phases names their graphs ``begin``, ``begin-1`` and so on; see :class:`Phase`.

An input that a graph does not use may be absent from it. Metrics are float32 sums; ``loss``, ``weight`` and
``examples`` are always there, the task's own follow.
"""

from typing import Any

import msgspec

from covey.plans.fields import ExampleSchema, FieldSpec, Query
from covey.plans.schemas import (
    ACTIVE_SCHEMA,
    DOWNLOAD_SCHEMA,
    EVALUATION_SCHEMA,
    NOISE_SCHEMA,
    SCHEMA_VERSION,
    STATE_SCHEMA,
    needed_schema,
)
from covey.plans.terms import Budget, Eligibility, NoiseTerms, PrivacyTerms, SecureTerms
from covey.types.errors import LayoutError, PlanFormatError, PlanSchemaError
from covey.types.segments import Segment, header_segment, real_segment
from covey.types.tensors import TensorSpec

__all__ = [
    "ACTIVE_SCHEMA",
    "BASE_METRICS",
    "CLIP",
    "CLIP_COUNT",
    "COMPARISON",
    "DOWNLOAD_SCHEMA",
    "EVALUATION_SCHEMA",
    "SCHEMA_VERSION",
    "TRAINED",
    "AlgorithmRef",
    "Budget",
    "Eligibility",
    "ExampleSchema",
    "FieldSpec",
    "GraphEntry",
    "HyperBound",
    "KEPT",
    "Manifest",
    "NOISE_SCHEMA",
    "NoiseTerms",
    "PERSONAL",
    "Phase",
    "PrivacyTerms",
    "Query",
    "RingPlan",
    "SecureTerms",
    "STATE_SCHEMA",
    "SegmentPlan",
    "decode_manifest",
    "encode_manifest",
    "needed_schema",
]

KEPT = "kept"
"""Prefix of what a device keeps from session to session: ``shared.kept/<name>`` goes in, ``kept.<name>`` comes out."""
TRAINED = "trained"
"""Before the ``/`` in the names of a structured update's masks among a graph's ``shared`` inputs."""
BASIS = "basis"
"""The name of what a structured update of low rank moves in, among the same."""

BASE_METRICS = ("examples", "loss", "weight")
COMPARISON = ("compared", "difference", "difference_squared")
"""The last metrics of an evaluation plan: 1 where the device compared two models, and how much they differed."""
PERSONAL = "personal"
"""What an evaluation compares ``against`` where the second model is each device's own. It never leaves the device."""
CLIP = "clip"
"""The per-round value that carries the clip where a plan has noise."""
CLIP_COUNT = "clip_count"
"""The segment with the indicators of the adapting clip: one coordinate, the last of an update."""


class HyperBound(msgspec.Struct, frozen=True, kw_only=True):
    """A value that an Assignment may set each round, with the bounds that the device enforces."""

    name: str
    default: float
    low: float
    high: float


class RingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a codec with a ring makes of a segment, in secure mode or under noise: the integers that are summed.

    It follows from the codec, and under noise from that; it stands here too, so that a plan's layout can be read
    without the codec, and a device checks that both agree.
    """

    num_values: int
    bound: int
    ring_bits: int
    n_max: int


class SegmentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A segment of the update: these tensors, flattened in canonical order, times the weight, as reals.

    Attributes:
        name: also the prefix of the tensors among ``finish``'s outputs.
        tensors: specs without the prefix.
        max_delta: the largest magnitude of one coordinate before weighting; an update beyond it is refused.
        weighting: ``examples`` (times min(num_examples, max_weight)) or ``none``.
        codec: how the reals are encoded: a compression spec (docs/compression.md).
        ring: in secure mode and under noise, the integers of a codec with a ring; None: the reals in fixed point.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    max_delta: float
    weighting: str = "examples"
    codec: str = "float32"
    ring: RingPlan | None = None

    @property
    def length(self) -> int:
        """Number of coordinates."""
        return sum(t.size for t in self.tensors)

    @property
    def num_summed(self) -> int:
        """Number of integers that are summed: fewer where a codec sends a part, more where it pads."""
        return self.length if self.ring is None else self.ring.num_values


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One exchange with a cohort: which graph runs, how long, and what comes back.

    ``batch_size`` examples make a step, ``epochs`` passes are made over the device's examples, at most ``max_steps``
    steps in all; a chunk holds at most ``chunk_steps`` steps, about one second of work.

    ``shared`` is what the server broadcasts. Where ``trained_in_place`` is set, the graphs take, besides, what the
    codec of the one segment draws from a public seed (a structured update): for ``mask``, a bool tensor
    ``trained/<parameter>`` for each of its tensors, and other parameters do not move; for ``lowrank``, the float32
    tensor ``basis``, and nothing moves but in its directions.

    A phase of graph ``eval`` has no state and no segments. The device compares the checkpoint with a second model, if
    there is one, by its mean of the metric ``compares``: with what the server broadcasts as ``shared`` or, where
    ``against`` is :data:`PERSONAL`, with the tuned model that it uses itself.

    ``kept`` is what the device itself keeps from one of its sessions to the next, zeros at first: inputs
    ``shared.kept/<name>`` of the graphs and outputs ``kept.<name>`` of ``finish``. It is stored where the server
    counted the report, and never sent. ``begin`` and ``finish`` name the phase's graphs.
    """

    name: str
    graph: str
    state: tuple[TensorSpec, ...]
    shared: tuple[TensorSpec, ...]
    segments: tuple[SegmentPlan, ...]
    batch_size: int
    epochs: int
    max_steps: int
    chunk_steps: int
    trained_in_place: bool = False
    compares: str = ""
    against: str = ""
    kept: tuple[TensorSpec, ...] = ()
    begin: str = "begin"
    finish: str = "finish"

    @property
    def needs_state_schema(self) -> bool:
        """Whether only devices that know ``kept``, ``begin`` and ``finish`` may run it."""
        return bool(self.kept) or (self.begin, self.finish) != ("begin", "finish")


class AlgorithmRef(msgspec.Struct, frozen=True, kw_only=True):
    """The algorithm whose server half applies the aggregate, and its settings, for example ``server_lr``."""

    name: str
    settings: dict[str, float] = {}


class GraphEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A graph in the archive: the SHA-256 of its bytes and their number."""

    sha256: str
    num_bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring. Unknown fields are ignored; a higher ``schema`` is refused.

    ``download`` is how a round's checkpoint is encoded (:mod:`covey.compression.checkpoint`); empty: float32.
    """

    schema: int = 1
    task: str
    algorithm: AlgorithmRef
    params: tuple[TensorSpec, ...]
    examples: ExampleSchema
    min_examples: int
    max_examples: int
    phases: tuple[Phase, ...]
    hyper: tuple[HyperBound, ...]
    metrics: tuple[str, ...]
    eval_batch_size: int
    graphs: dict[str, GraphEntry]
    eligibility: Eligibility = Eligibility()
    budget: Budget = Budget()
    privacy: PrivacyTerms = PrivacyTerms()
    download: str = ""
    built_with: dict[str, str] = {}

    @property
    def graph_metrics(self) -> tuple[str, ...]:
        """The metrics that the graphs sum; the comparison's follow from two such sums."""
        return tuple(k for k in self.metrics if k not in COMPARISON)

    @property
    def num_opened(self) -> int:
        """How many coordinates of the model one sum opens, of the phase with the most: what noise is spread over."""
        return max(sum(s.num_summed for s in p.segments) for p in self.phases)

    def layout(self, phase: int) -> tuple[Segment, ...]:
        """Return the integer segments of an update: the header first, then the phase's own, in order.

        Raises:
            LayoutError: a sum over ``n_max`` devices could wrap, or a ring leaves too little room behind the point.
        """
        terms, noise = self.privacy, self.privacy.noise
        n_max = terms.most_in_sum
        ring_bits = terms.secure.ring_bits if terms.secure else 64
        out = [header_segment(len(self.metrics), n_max)]
        for s in self.phases[phase].segments:
            if (ring := s.ring) is not None:
                out.append(Segment(s.name, ring.num_values, ring.bound, ring.n_max, ring_bits=ring.ring_bits))
                continue
            if noise is not None:
                # Integers already: the clip is clip_units of them, whatever the clip is this round. A segment refuses
                # magnitudes of its bound and more.
                out.append(Segment(s.name, s.length, noise.coordinate_bound + 1, n_max, ring_bits=noise.ring_bits))
                continue
            weight = terms.max_weight if s.weighting == "examples" else 1
            segment = real_segment(s.name, s.length, s.max_delta * weight, n_max, ring_bits)
            if segment.fraction_bits < _LEAST_FRACTION_BITS:
                raise LayoutError(
                    f"segment {s.name!r}", expected=f"room for {_LEAST_FRACTION_BITS} bits behind the point",
                    got=f"{segment.fraction_bits} in a ring of {ring_bits}",
                    hint="lower max_weight, max_delta or the group size, or widen ring_bits",
                )  # fmt: skip
            out.append(segment)
        if noise is not None and noise.quantile is not None:
            out.append(Segment(CLIP_COUNT, 1, noise.count_bound + 1, n_max))
        return tuple(out)


_LEAST_FRACTION_BITS = 8
"""A weighted coordinate is rounded to 1/256 at worst: to 4e-6 of a device's change, at a thousand examples."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode as JSON with sorted keys: the same manifest always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)


def decode_manifest(data: bytes) -> Manifest:
    """Decode and validate.

    Raises:
        PlanSchemaError: written for a newer Covey.
        PlanFormatError: not a manifest.
    """
    try:
        head: Any = msgspec.json.decode(data)
        schema = head.get("schema") if isinstance(head, dict) else None
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise PlanSchemaError(
                "manifest.json: schema", expected=f"at most {SCHEMA_VERSION}", got=str(schema),
                hint="this plan was built with a newer Covey: upgrade this device",
            )  # fmt: skip
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        raise PlanFormatError("manifest.json", expected=f"schema {SCHEMA_VERSION} or below", got=str(e)[:200]) from e
    _validate(manifest)
    return manifest


def _validate(m: Manifest) -> None:
    """Check what types alone cannot say."""
    checks = [
        (len(m.phases) >= 1, "phases", "at least one phase"),
        (1 <= m.min_examples <= m.max_examples, "min_examples", "1 <= min_examples <= max_examples"),
        (m.eval_batch_size >= 1, "eval_batch_size", "at least 1"),
        (m.privacy.mode in ("plain", "secure"), "privacy.mode", "plain or secure"),
        ((m.privacy.mode == "secure") == (m.privacy.secure is not None), "privacy.secure", "terms in secure mode only"),
        (1 <= m.privacy.min_cohort <= m.privacy.n_max, "privacy.min_cohort", "1 <= min_cohort <= n_max"),
        (m.privacy.max_weight >= 1, "privacy.max_weight", "at least 1"),
        (m.metrics[: len(BASE_METRICS)] == BASE_METRICS, "metrics", f"to start with {', '.join(BASE_METRICS)}"),
        (len(set(m.metrics)) == len(m.metrics), "metrics", "distinct names"),
        (m.params == tuple(sorted(m.params)), "params", "canonical order"),
        (m.schema >= DOWNLOAD_SCHEMA or not m.download, "schema", f"at least {DOWNLOAD_SCHEMA} for a download spec"),
    ]
    for i, p in enumerate(m.phases):
        known = m.schema >= STATE_SCHEMA or not p.needs_state_schema
        checks.append((known, "schema", f"at least {STATE_SCHEMA} for state on the device or several phases"))
        checks += _evaluation_checks(m, p, f"phases[{i}]") if p.graph == "eval" else _phase_checks(p, f"phases[{i}]")
    if (secure := m.privacy.secure) is not None:
        checks += [
            (m.privacy.min_cohort <= secure.group_size, "privacy.secure.group_size", "at least min_cohort"),
            (secure.ring_bits in (*range(8, 33), 64), "privacy.secure.ring_bits", "8 to 32, or 64"),
            (secure.mode in ("honest-but-curious", "active"), "privacy.secure.mode", "honest-but-curious or active"),
            (_is_key(secure.authority) == secure.is_active, "privacy.secure.authority", "32 bytes in hex if active"),
            (secure.is_active or not secure.authority, "privacy.secure.authority", "none unless active"),
            (m.schema >= ACTIVE_SCHEMA or not secure.is_active, "schema", f"at least {ACTIVE_SCHEMA} if active"),
        ]
    summed = m.privacy.mode == "secure" or m.privacy.noise is not None
    rings = [s.ring for p in m.phases for s in p.segments]
    checks.append((summed or not any(rings), "phases: ring", "none in plain mode without noise"))
    checks += [(h.low <= h.default <= h.high, f"hyper.{h.name}", "low <= default <= high") for h in m.hyper]
    if m.privacy.noise is not None:
        checks += _noise_checks(m, m.privacy.noise)
    for ok, where, expected in checks:
        if not ok:
            raise PlanFormatError(f"manifest.json: {where}", expected=expected, got="something else")


def _is_key(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _phase_checks(p: Phase, where: str) -> list[tuple[bool, str, str]]:
    return [
        (p.graph in ("train", "gradient"), f"{where}.graph", "train, gradient or eval"),
        (min(p.batch_size, p.epochs, p.max_steps, p.chunk_steps) >= 1, where, "sizes of at least 1"),
        (len(p.segments) >= 1, f"{where}.segments", "at least one segment"),
        (all(s.weighting in ("examples", "none") for s in p.segments), f"{where}.weighting", "examples or none"),
        (not p.trained_in_place or len(p.segments) == 1, f"{where}.trained_in_place", "one segment, with its codec"),
        (all(s.max_delta > 0 for s in p.segments), f"{where}.max_delta", "above 0"),
        (not p.compares and not p.against, f"{where}.compares", "nothing but in an evaluation"),
    ]


def _evaluation_checks(m: Manifest, p: Phase, where: str) -> list[tuple[bool, str, str]]:
    second = {"": m.params, PERSONAL: ()}
    return [
        (m.schema >= EVALUATION_SCHEMA, "schema", f"at least {EVALUATION_SCHEMA} for an evaluation"),
        (len(m.phases) == 1, "phases", "no other phase beside an evaluation"),
        (not p.segments and not p.state and not p.trained_in_place, where, "an evaluation to send the header alone"),
        (p.shared == second.get(p.against), f"{where}: shared, against", f"a model, or none against {PERSONAL}"),
        (m.metrics[-len(COMPARISON) :] == COMPARISON, "metrics", f"to end with {', '.join(COMPARISON)}"),
        (p.compares in set(m.graph_metrics) - {"examples", "weight"}, f"{where}.compares", "a metric that has a mean"),
        (not m.hyper, "hyper", "no per-round values in an evaluation"),
        (not m.download, "download", "nothing: an evaluation measures the exact checkpoint"),
        (m.privacy.noise is None, "privacy.noise", "none: an evaluation has nothing but metrics, which get no noise"),
    ]


def _noise_checks(m: Manifest, noise: NoiseTerms) -> list[tuple[bool, str, str]]:
    """Return the checks of a plan with noise; what the noise itself must be is :mod:`covey.privacy`'s business."""
    clip = next((h for h in m.hyper if h.name == CLIP), None)
    same = clip is not None and (clip.default, clip.low, clip.high) == (noise.clip, noise.clip_low, noise.clip_high)
    segments = [s for p in m.phases for s in p.segments]
    rings = [s.ring for s in segments if s.ring is not None]
    bounds = {(r.bound, r.ring_bits) for r in rings} - {(noise.coordinate_bound + 1, noise.ring_bits)}
    return [
        (m.schema >= NOISE_SCHEMA, "schema", f"at least {NOISE_SCHEMA} for a plan with noise"),
        (same, f"hyper.{CLIP}", "the bounds of privacy.noise"),
        (all(s.weighting == "none" for s in segments), "phases: weighting", "none: under noise weights are uniform"),
        (all(s.name != CLIP_COUNT for s in segments), "phases: segments", f"names other than {CLIP_COUNT}"),
        # Another codec would change what was clipped and noised.
        (all(s.codec == "float32" or s.ring for s in segments), "phases: codec", "float32 or a ring under noise"),
        (len({s.codec for s in segments}) == 1, "phases: codec", "one for all segments under noise"),
        (not bounds, "phases: ring", "the bound and the width of privacy.noise"),
        (all(r.n_max >= m.privacy.most_in_sum for r in rings), "phases: ring.n_max", "room for all that are selected"),
        (not rings or noise.kind != "tree", "privacy.noise.kind", "none that spans rounds, whose rotations differ"),
        # Integers below 2**24 are exact in float32.
        (0 < noise.coordinate_bound < 1 << 24, "privacy.noise.coordinate_bound", "1 to 2**24 - 1"),
    ]
