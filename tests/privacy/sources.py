"""Sources of randomness for tests: repeatable, and therefore not private."""

import numpy as np

from covey.privacy.randomness import AesCtr
from covey.types.rng import derive_seed


def seeded(*labels):
    return AesCtr(derive_seed(20261125, *labels), private=False)


class Words:
    """Gives these 64-bit words, one after the other, then fails."""

    private = False

    def __init__(self, *words):
        self._words = list(words)

    def fill(self, out):
        assert out.dtype == np.uint64
        for i in range(len(out)):
            out[i] = self._words.pop(0)

    @property
    def left(self):
        return len(self._words)
