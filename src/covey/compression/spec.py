"""The grammar of specs: how a task names its compression, in one line of a plan.

::

    spec     = stage *( "|" stage )
    stage    = NAME *( ":" ARGUMENT )

    hd                   randomised Hadamard rotation
    subsample:P          a random part P of the coordinates, scaled
    mask:P               only the part P that was trained (structured update)
    lowrank:K            only K dimensions, that were trained, of each 256 coordinates (structured update)
    topk:F               the part F with the largest magnitudes
    float32              four bytes a value
    quantize:B           B bits, 1 to 8, probabilistic, between each row's extremes
    eden:B               B bits, up to 4, fractions allowed; after hd
    uniform:T[:stochastic]   steps of T root mean squares, entropy coded
    ring:B:N:NORM[:CLAMP]    B bits of the secure path for at most N devices of norm NORM, clamped at CLAMP (4)
                         deviations; after hd. With differential privacy NORM is the word clip

The last stage is a coder (one of the last five); a spec without one ends in ``float32``. ``eden:B`` below 1 bit stands
for ``subsample:B|eden:1``.
"""

import difflib
from collections.abc import Callable

from covey.compression.eden import MAX_BITS, Eden
from covey.compression.entropy import range_coder
from covey.compression.exact import Exact
from covey.compression.probabilistic_quantization import Quantize
from covey.compression.ring_coder import CLIP_NORM, Ring
from covey.compression.rotation import Rotation
from covey.compression.stage import Coder, Transform
from covey.compression.structured_updates import ROW_VALUES, LowRank, RandomMask
from covey.compression.subsampling import Subsample
from covey.compression.top_k import TopK
from covey.compression.uniform_quantization import Uniform
from covey.types.errors import CompressionSpecError

__all__ = ["STAGE_NAMES", "parse_spec"]


_STRUCTURES = (RandomMask, LowRank)


def parse_spec(spec: str) -> tuple[tuple[Transform, ...], Coder]:
    """Return a spec's transforms and its coder.

    Raises:
        CompressionSpecError: not of the grammar, a value out of range, or stages that do not go together.
        MissingExtraError: it needs entropy coding, and the package for it is not installed.
    """
    parts = [p.strip() for p in spec.split("|")]
    transforms: list[Transform] = []
    coder: Coder | None = None
    for position, part in enumerate(parts):
        name, *arguments = part.split(":")
        if name not in _STAGES:
            near = difflib.get_close_matches(name, _STAGES, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/compression.md lists them"
            raise _wrong(spec, f"stages among {', '.join(_STAGES)}", name[:40] or "nothing", hint)
        made = _STAGES[name](spec, arguments)
        if hasattr(made[-1], "max_side_bytes"):
            transforms += made
            continue
        if position != len(parts) - 1:
            raise _wrong(spec, "one coder, at the end", f"{name} before {parts[position + 1][:40]}")
        *before, coder = made
        transforms += before
    coder = coder or Exact("float32")
    _check_together(spec, transforms, coder)
    if isinstance(coder, Uniform):
        range_coder()
    if isinstance(coder, Ring):
        # The secure path rotates and subsamples by itself: unscaled, and undone once, on the sum.
        keep = next((t.keep for t in transforms if isinstance(t, Subsample)), 1.0)
        structures = tuple(t for t in transforms if isinstance(t, _STRUCTURES))
        return structures, Ring(coder.bits, coder.n_max, coder.norm, coder.clamp, keep)
    return tuple(transforms), coder


def _check_together(spec: str, transforms: list[Transform], coder: Coder) -> None:
    kinds = [type(t) for t in transforms]
    if len(set(kinds)) != len(kinds):
        raise _wrong(spec, "every transform at most once", "one twice", "eden below 1 bit subsamples by itself")
    structured = [k for k in kinds if k in _STRUCTURES]
    if len(structured) > 1:
        raise _wrong(spec, "one structure to train in", "mask and lowrank")
    if any(k in _STRUCTURES for k in kinds[1:]):
        raise _wrong(spec, "mask and lowrank first", "them after another stage", "they say what is trained")
    if TopK in kinds and kinds.index(TopK) > len(structured):
        raise _wrong(spec, "topk first, but for mask and lowrank", "it after another stage", "it is about coordinates")
    if isinstance(coder, Eden | Ring) and Rotation not in kinds:
        raise _wrong(spec, "hd before eden and ring", "none", f"hd|{spec}: they count on rotated values")
    if isinstance(coder, Ring):
        odd = [t.text for t in transforms if not t.composes_with_secagg]
        order = [k for k in kinds if k in (Rotation, Subsample)]
        if odd or order not in ([Rotation], [Rotation, Subsample]):
            raise _wrong(
                spec, "[mask|][lowrank|]hd[|subsample]|ring", "others", "only these compose with secure aggregation"
            )


def _wrong(spec: str, expected: str, got: str, hint: str = "") -> CompressionSpecError:
    return CompressionSpecError(f"compression {spec[:80]!r}", expected=expected, got=got, hint=hint)


def _numbers(spec: str, name: str, arguments: list[str], *bounds: tuple[str, float, float]) -> list[float]:
    if len(arguments) != len(bounds):
        raise _wrong(spec, f"{':'.join([name, *(b[0] for b in bounds)])}", f"{len(arguments)} argument(s)")
    out = []
    for text, (what, low, high) in zip(arguments, bounds, strict=True):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise _wrong(spec, f"{name}: {what} from {low:g} to {high:g}", text[:20])
        out.append(value)
    return out


def _whole(spec: str, name: str, value: float, what: str) -> int:
    if value != int(value):
        raise _wrong(spec, f"{name}: {what} whole", f"{value:g}")
    return int(value)


_LEAST = 1e-6
_PART = ("P", _LEAST, 1.0)


def _rotation(spec: str, arguments: list[str]) -> list[Transform]:
    if arguments not in ([], ["interleaved"]):
        raise _wrong(spec, "hd or hd:interleaved", ":".join(["hd", *arguments])[:40])
    return [Rotation(interleaved=bool(arguments))]


def _eden(spec: str, arguments: list[str]) -> list[Transform | Coder]:
    (bits,) = _numbers(spec, "eden", arguments, ("B", _LEAST, MAX_BITS))
    return [Subsample(bits), Eden(1.0)] if bits < 1 else [Eden(bits)]


def _low_rank(spec: str, arguments: list[str]) -> list[Transform]:
    (rank,) = _numbers(spec, "lowrank", arguments, ("K", 1, ROW_VALUES))
    return [LowRank(_whole(spec, "lowrank", rank, "K"))]


def _quantize(spec: str, arguments: list[str]) -> list[Coder]:
    (bits,) = _numbers(spec, "quantize", arguments, ("B", 1, 8))
    return [Quantize(_whole(spec, "quantize", bits, "B"))]


def _uniform(spec: str, arguments: list[str]) -> list[Coder]:
    stochastic = arguments[1:] == ["stochastic"]
    (step,) = _numbers(spec, "uniform", arguments[:1] if stochastic else arguments, ("T", 1e-4, 1e4))
    return [Uniform(step, stochastic=stochastic)]


def _exact(spec: str, arguments: list[str]) -> list[Coder]:
    _numbers(spec, "float32", arguments)
    return [Exact("float32")]


def _ring(spec: str, arguments: list[str]) -> list[Coder]:
    bounds = [("B", 2, 32), ("N", 1, 2.0**30), ("NORM", 1e-30, 1e30), ("CLAMP", 0.5, 100.0)]
    by_clip = arguments[2:3] == [CLIP_NORM]
    given = [*arguments[:2], "1", *arguments[3:]] if by_clip else arguments
    bits, n_max, norm, *clamp = _numbers(spec, "ring", given, *bounds[: max(3, len(given))])
    whole = _whole(spec, "ring", bits, "B"), _whole(spec, "ring", n_max, "N")
    made = Ring(*whole, None if by_clip else norm, *clamp)
    if made.n_max >= 1 << (made.bits - 1):
        raise _wrong(spec, f"room for one step of each of {made.n_max} devices", f"{made.bits} bits", "a wider ring")
    return [made]


_STAGES: dict[str, Callable[[str, list[str]], list]] = {  # type: ignore[type-arg]
    "hd": _rotation,
    "subsample": lambda s, a: [Subsample(*_numbers(s, "subsample", a, _PART))],
    "mask": lambda s, a: [RandomMask(*_numbers(s, "mask", a, _PART))],
    "lowrank": _low_rank,
    "topk": lambda s, a: [TopK(*_numbers(s, "topk", a, _PART))],
    "float32": _exact,
    "quantize": _quantize,
    "eden": _eden,
    "uniform": _uniform,
    "ring": _ring,
}

STAGE_NAMES = tuple(_STAGES)
"""The names that a spec may use."""
