"""Vectors and randomness that the tests of compression share."""

import numpy as np

SEED = bytes(range(32))


class Rounding:
    """Private randomness from a seed: for tests only."""

    def __init__(self, *seed: int):
        self._rng = np.random.default_rng(seed)
        self.taken = 0

    def take(self, num_bytes: int) -> bytes:
        self.taken += num_bytes
        return self._rng.bytes(num_bytes)


def seed(i: int) -> bytes:
    return i.to_bytes(4, "little") * 8


def drawn(kind: str, length: int, *at: int) -> np.ndarray:
    rng = np.random.default_rng([11, *at])
    values = {
        "normal": lambda: rng.standard_normal(length),
        "lognormal": lambda: rng.lognormal(0, 1, length),
        "t3": lambda: rng.standard_t(3, length),
    }[kind]()
    return values.astype(np.float32)


def spikes(length: int, *values: float) -> np.ndarray:
    out = np.zeros(length, np.float32)
    out[: len(values)] = values[:length]
    return out


ADVERSARIAL = {
    "one": np.array([3.0], np.float32),
    "two": np.array([1.0, -0.25], np.float32),
    "a spike": spikes(129, 5.0),
    "three spikes": spikes(257, 4.0, -2.0, 1.0),
    "2^k + 1": spikes(65, *np.linspace(-1, 1, 65)),
    "constant": np.full(33, 0.7, np.float32),
    "spike on noise": (drawn("normal", 130) * 0.01 + spikes(130, 1.0)).astype(np.float32),
}


def error(decoded: np.ndarray, values: np.ndarray) -> float:
    """Return the squared error relative to the squared norm."""
    difference = decoded.astype(np.float64) - values
    return float(difference @ difference / (values.astype(np.float64) @ values))
