import numpy as np
import pytest

from covey.data.dataset import from_clients, pooled
from covey.types.errors import ExampleError, NotFoundError

TRAIN = {"a": {"x": np.ones((2, 3)), "y": np.zeros(2)}, "b": {"x": np.ones((1, 3)), "y": np.ones(1)}}


def test_your_own_arrays_are_a_federated_data_set():
    dataset = from_clients("mine", TRAIN, {"b": {"x": np.zeros((4, 3)), "y": np.zeros(4)}})
    assert tuple(dataset.client_ids) == ("a", "b")
    assert [dataset.num_examples(c) for c in "ab"] == [2, 1]
    assert len(dataset.test("a")["y"]) == 0
    assert len(dataset.pooled_test()["y"]) == 4
    with pytest.raises(NotFoundError) as caught:
        dataset.train("somebody in particular")
    assert "somebody" not in str(caught.value)


def test_ragged_or_different_fields_are_refused():
    with pytest.raises(ExampleError):
        from_clients("mine", {"a": {"x": np.ones((2, 3)), "y": np.zeros(3)}})
    with pytest.raises(ExampleError):
        from_clients("mine", {**TRAIN, "c": {"x": np.ones((1, 3))}})


def test_pooling_keeps_the_order():
    assert pooled([TRAIN["a"], TRAIN["b"]])["y"].tolist() == [0, 0, 1]
    assert pooled([]) == {}
