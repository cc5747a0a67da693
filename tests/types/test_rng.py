import numpy as np
import pytest

from covey.types.clock import VirtualClock
from covey.types.rng import derive_seed, generator, key_words


def test_streams_depend_on_every_label_and_on_its_place():
    seeds = [
        derive_seed(0, "a", 1), derive_seed(0, "a", 2), derive_seed(0, 1, "a"), derive_seed(1, "a", 1),
        derive_seed(0, "a", "1"), derive_seed(b"0", "a", 1), derive_seed(0, "a1"), derive_seed(0, "a"),
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")


def test_streams_are_the_same_everywhere_and_for_ever():
    """Runs that are repeated years later must shuffle alike: these values may not change."""
    assert derive_seed(7, "shuffle", 3).hex()[:16] == "7534731078bb5df4"
    assert generator(7, "shuffle", 3).permutation(6).tolist() == [0, 4, 5, 2, 3, 1]
    assert key_words(7, "dropout").dtype == np.uint32


def test_a_virtual_clock_never_runs_backwards():
    clock = VirtualClock(5.0)
    clock.advance_to(7.0)
    clock.advance_to(6.0)
    assert clock.now_s() == pytest.approx(7.0)
