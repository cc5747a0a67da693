import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.data.partition import by_writer, dirichlet, iid, parse_partition, two_class
from covey.types.errors import UsageError


def labels_of(count):
    return np.random.default_rng(count).integers(0, 10, count)


@settings(deadline=None, max_examples=25)
@given(st.integers(40, 400), st.integers(1, 20), st.sampled_from(["iid", "two", "dirichlet"]), st.integers(0, 99))
def test_every_row_goes_to_exactly_one_client(count, clients, kind, seed):
    labels, rng = labels_of(count), np.random.default_rng(seed)
    parts = {
        "iid": lambda: iid(count, clients, rng),
        "two": lambda: two_class(labels, clients, rng),
        "dirichlet": lambda: dirichlet(labels, clients, 0.5, rng),
    }[kind]()
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= (2 if kind == "two" else 1)


def test_most_clients_see_two_classes():
    labels = np.repeat(np.arange(10), 600)
    parts = two_class(labels, 100, np.random.default_rng(0))
    assert max(len(np.unique(labels[p])) for p in parts) <= 4
    assert np.mean([len(np.unique(labels[p])) <= 2 for p in parts]) > 0.9


def test_a_small_alpha_concentrates_and_a_large_one_spreads():
    labels = np.repeat(np.arange(10), 600)

    def largest_share(alpha):
        parts = dirichlet(labels, 50, alpha, np.random.default_rng(1))
        return np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts])

    assert largest_share(0.05) > 0.6
    assert largest_share(1000.0) < 0.2


def test_writers_keep_their_rows():
    writers = np.array([3, 1, 3, 2, 1])
    assert {k: v.tolist() for k, v in by_writer(writers).items()} == {1: [1, 4], 2: [3], 3: [0, 2]}


@pytest.mark.parametrize("text", ["", "dirichlet", "dirichlet:x", "dirichlet:-1", "dirichlet:nan", "iidd", "iid:3"])
def test_what_is_no_partition_is_refused(text):
    with pytest.raises(UsageError):
        parse_partition(text)


def test_more_clients_than_rows_are_refused():
    with pytest.raises(UsageError):
        iid(3, 4, np.random.default_rng(0))
