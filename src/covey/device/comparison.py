"""Say whether one model is better than another on this device's own examples, and not by chance.

Examples are dealt to three parts by a hash of their content: *train* is fine-tuned on, *gate* decides which model is
used, *report* is looked at by neither, so that it can say how the decision turned out. Equal examples fall into the
same part, and a part never changes, whatever is added later.

The decision is a sign-flip (randomization) test on paired differences: R. A. Fisher, The Design of Experiments, 1935,
section 21. The gate's examples are cut into blocks by the same hash; each block gives one difference of mean losses.
If the models were equally good, each difference would be as likely as its negative, so the observed mean is compared
with the means under random signs. That is exact for differences that are symmetric about zero, at any number of blocks.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.device.evaluate import Evaluator
from covey.types.rng import generator
from covey.types.tensors import Tensors

__all__ = ["PARTS", "Part", "block_losses", "hashes", "sign_flip_p_value", "split"]

PARTS: Mapping[str, tuple[float, float]] = {"train": (0.0, 0.6), "gate": (0.6, 0.8), "report": (0.8, 1.0)}
"""Which fractions of the hash's range belong to which part."""

_LABEL = b"covey parts v1\x00"
_MAX_BLOCKS = 30
_NUM_FLIPS = 1999


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a device's examples, with a place in [0, 1) for each that depends on its content alone."""

    examples: Tensors
    places: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.places)


def hashes(examples: Tensors) -> NDArray[np.float64]:
    """Return for each example a number in [0, 1): SHA-256 of its fields' bytes, sorted by name."""
    columns = [np.ascontiguousarray(examples[name]) for name in sorted(examples)]
    count = len(columns[0]) if columns else 0
    out = np.empty(count, np.float64)
    for i in range(count):
        digest = hashlib.sha256(_LABEL)
        for column in columns:
            digest.update(column[i].tobytes())
        out[i] = int.from_bytes(digest.digest()[:6], "big") / 2**48
    return out


def split(examples: Tensors) -> dict[str, Part]:
    """Deal examples to the parts."""
    places = hashes(examples)
    out = {}
    for name, (low, high) in PARTS.items():
        rows = np.flatnonzero((places >= low) & (places < high))
        out[name] = Part({k: v[rows] for k, v in examples.items()}, (places[rows] - low) / (high - low))
    return out


def block_losses(evaluator: Evaluator, params: Tensors, part: Part) -> NDArray[np.float64]:
    """Return the mean loss of each block of a part: at most 30 blocks, of one example each if there are few.

    The blocks depend on the part alone, so that two models' losses are paired.
    """
    order = np.argsort(part.places, kind="stable")
    losses = []
    for rows in np.array_split(order, min(_MAX_BLOCKS, len(part))):
        sums = evaluator.evaluate(params, {k: v[np.sort(rows)] for k, v in part.examples.items()})
        losses.append(sums["loss"] / max(sums["weight"], 1e-12))
    return np.array(losses, np.float64)


def sign_flip_p_value(improvement: NDArray[np.float64]) -> float:
    """Return how often chance alone makes a mean improvement this large; 1 if there is none.

    Args:
        improvement: one paired difference for each block, above zero where the new model is better.
    """
    observed = float(improvement.mean()) if improvement.size else 0.0
    if not observed > 0:  # a NaN is no improvement
        return 1.0
    # Seeded by a constant: the same examples give the same decision.
    rng = generator(bytes(32), "sign flips")
    signs = rng.integers(0, 2, (_NUM_FLIPS, improvement.size)) * 2 - 1
    as_large = int(((signs * improvement).mean(axis=1) >= observed * (1 - 1e-12)).sum())
    return (1 + as_large) / (1 + _NUM_FLIPS)
