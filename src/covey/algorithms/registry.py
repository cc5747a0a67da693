"""Server halves by the name that a plan gives."""

import difflib
from collections.abc import Callable, Mapping

from covey.algorithms.algorithm import Algorithm
from covey.algorithms.evaluation import evaluation
from covey.algorithms.fedavg import fedavg
from covey.algorithms.fedsgd import fedsgd
from covey.types.errors import UsageError

__all__ = ["ALGORITHMS", "server_half"]

ALGORITHMS: Mapping[str, Callable[[Mapping[str, float]], Algorithm]] = {
    "evaluation": evaluation,
    "fedavg": fedavg,
    "fedsgd": fedsgd,
}


def server_half(name: str, settings: Mapping[str, float]) -> Algorithm:
    """Return the server half of an algorithm.

    Raises:
        UsageError: no such algorithm; names the near misses.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=2)
        raise UsageError(
            "algorithm",
            expected=f"one of {', '.join(sorted(ALGORITHMS))}",
            got=name,
            hint=f"did you mean {' or '.join(near)}?" if near else "",
        )
    return ALGORITHMS[name](settings)
