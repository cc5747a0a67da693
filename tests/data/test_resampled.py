import numpy as np
import pytest

from covey.data.dataset import sizes_of
from covey.data.partition import parse_partition
from covey.data.resampled import ResampledDataset
from covey.types.errors import NotFoundError, UsageError


def population(count, seed=0):
    pool = np.arange(50)
    return ResampledDataset("pool", count, 4, 50, lambda rows: {"x": pool[rows]}, lambda: {"x": pool[:5]}, seed)


def test_a_billion_clients_cost_nothing_until_asked():
    dataset = population(10**9)
    ids = dataset.client_ids
    assert len(ids) == 10**9 and ids[7] == "resample-7" and ids[-1] == f"resample-{10**9 - 1}"
    assert list(ids[2:4]) == ["resample-2", "resample-3"]
    first, again = (dataset.train("resample-123456789")["x"] for _ in range(2))
    assert first.tolist() == again.tolist() and len(first) == 4 == dataset.num_examples("resample-5")
    assert first.tolist() != dataset.train("resample-123456788")["x"].tolist()
    assert first.tolist() != population(10**9, seed=1).train("resample-123456789")["x"].tolist()
    assert len(dataset.pooled_test()["x"]) == 5 and len(dataset.test("resample-0")["x"]) == 0


def test_sizes_come_in_one_piece():
    assert sizes_of(population(1000)).tolist() == [4] * 1000


@pytest.mark.parametrize("client", ["resample-10", "resample-01", "resample-", "other-1", "resample--1"])
def test_other_names_are_unknown(client):
    with pytest.raises(NotFoundError):
        population(10).train(client)


def test_the_number_of_examples_is_part_of_the_partition():
    assert parse_partition("resample:20").num_examples == 20
    for text in ("resample", "resample:0", "resample:x"):
        with pytest.raises(UsageError, match="resample:N"):
            parse_partition(text)
