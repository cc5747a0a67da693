import numpy as np
import pytest

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half
from covey.types.errors import CoveyError, UpdateNotFiniteError


def aggregate(deltas, weights):
    total = {k: sum(w * d[k].astype(np.float64) for w, d in zip(weights, deltas, strict=True)) for k in deltas[0]}
    return Aggregate(len(deltas), float(sum(weights)), {"weight": float(sum(weights))}, {"model": total})


@pytest.mark.parametrize("name", ["fedavg", "fedsgd"])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_the_server_moves_by_the_weighted_mean(name, server_lr):
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((2, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    deltas = [{k: rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()} for _ in range(3)]
    weights = [1.0, 5.0, 2.0]
    half = server_half(name, {"server_lr": server_lr})
    after = half.phases[0].apply(half.init(params), aggregate(deltas, weights))
    for k, v in params.items():
        mean = sum(w * d[k].astype(np.float64) for w, d in zip(weights, deltas, strict=True)) / 8.0
        expected = v + server_lr * mean
        assert after.params[k].dtype == np.float32
        # One rounding to float32 of a value below 8.
        assert np.abs(after.params[k] - expected).max() <= 8 * np.finfo(np.float32).eps


def test_no_weight_and_no_number_are_refused():
    half = server_half("fedavg", {})
    state = ServerState({"w": np.zeros(2, np.float32)})
    for weight, value in ((0.0, 1.0), (1.0, np.inf), (1.0, 1e300)):
        bad = Aggregate(1, weight, {"weight": weight}, {"model": {"w": np.full(2, value)}})
        with pytest.raises(UpdateNotFiniteError), np.errstate(over="ignore"):
            half.phases[0].apply(state, bad)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(CoveyError, match="fedavg"):
        server_half("fedmagic", {})
