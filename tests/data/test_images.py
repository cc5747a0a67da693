import os
from pathlib import Path

import numpy as np
import pytest

from covey.data.registry import load
from covey.types.errors import DatasetMissingError, UsageError

folder = os.environ.get("COVEY_DATA", "")
needs_mnist = pytest.mark.skipif(
    not (Path(folder) / "mnist" / "mnist.npz").is_file(), reason="needs COVEY_DATA: a folder with mnist/mnist.npz"
)
needs_cifar = pytest.mark.skipif(
    not (Path(folder) / "cifar10_jpeg" / "cifar10_small_rgb.npz").is_file(),
    reason="needs COVEY_DATA: a folder with cifar10_jpeg/cifar10_small_rgb.npz",
)


@needs_mnist
@pytest.mark.parametrize("partition", ["iid", "two-class", "dirichlet:0.5"])
def test_mnist_is_dealt_out_whole(partition):
    dataset = load("mnist", partition=partition, num_clients=100, seed=1)
    assert len(dataset.client_ids) == 100
    assert sum(dataset.num_examples(c) for c in dataset.client_ids) == 60_000
    examples = dataset.train(dataset.client_ids[7])
    assert examples["x"].shape == (600, 784) and examples["x"].dtype == np.float32
    assert examples["x"].min() >= 0 and examples["x"].max() == 1.0
    assert examples["y"].dtype == np.int32
    assert dataset.pooled_test()["x"].shape == (10_000, 784)
    again = load("mnist", partition=partition, num_clients=100, seed=1)
    assert again.train(again.client_ids[7])["x"].tobytes() == examples["x"].tobytes()


@needs_mnist
def test_each_writer_is_a_client():
    dataset = load("mnist", partition="writer")
    assert len(dataset.client_ids) > 200
    assert sum(dataset.num_examples(c) for c in dataset.client_ids) == 60_000


@needs_cifar
def test_a_part_of_cifar_decodes():
    dataset = load("cifar10", num_clients=10, small=True)
    examples = dataset.train(dataset.client_ids[0])
    assert examples["x"].shape[1:] == (32, 32, 3) or examples["x"].shape[1:] == (3, 32, 32)
    assert examples["x"].dtype == np.float32 and 0 <= examples["x"].min() <= examples["x"].max() <= 1


def test_a_missing_set_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("COVEY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("mnist", "cifar10"):
        with pytest.raises(DatasetMissingError) as caught:
            load(name)
        assert f"covey data fetch {name}" in caught.value.hint


@needs_mnist
def test_roles_are_no_partition_of_digits():
    with pytest.raises(UsageError):
        load("mnist", partition="role")
