"""What does the secure path cost in accuracy once its devices add noise, and what in bytes?

The 2NN on MNIST dealt to 1,000 devices of 60 examples and two digits each, all of them in every round: nothing is
hidden by sampling and epsilon is that of a device in all rounds. One target epsilon; every row has the same clip,
learning rate, rounds and uniform weights where there is noise. ``best`` and ``last`` are test accuracies.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.compression_curves import Curve, CurveStore
from benchmarks.report import Report

__all__ = ["compare_private"]

_ROUNDS = 20
_DEVICES = 1000
_SETTINGS: dict[str, Any] = {"partition": "two-class", "num_clients": _DEVICES, "cohort": _DEVICES, "lr": 0.1}
_TARGET = "clip=1,epsilon=10"


@dataclass(frozen=True)
class _Arm:
    name: str
    spec: str
    privacy: str | None


_ARMS = (
    _Arm("float32, no noise", "float32", None),
    _Arm("secure path, no noise", f"hd|subsample:0.125|ring:15:{_DEVICES}:75", None),
    _Arm("float32, the server's noise", "float32", f"gaussian:{_TARGET}"),
    _Arm("secure path, devices' noise", f"hd|subsample:0.125|ring:20:{_DEVICES}:clip", f"skellam:{_TARGET}"),
)


def compare_private(report: Report, store: CurveStore, seeds: tuple[int, ...]) -> None:
    """Run, or read, the rows, and print accuracy at epsilon beside bytes."""
    curves: dict[str, dict[int, Curve]] = {a.name: {} for a in _ARMS}
    for seed in seeds:
        for arm in reversed(_ARMS):  # a short budget tells the row that nothing else tells first
            found = store.curve("mnist-2nn", arm.spec, seed, _ROUNDS, privacy=arm.privacy, **_SETTINGS)
            if found is not None:
                curves[arm.name][seed] = found
    report.table(
        f"mnist-2nn, {_DEVICES} devices in each of {_ROUNDS} rounds: accuracy at its epsilon",
        ["row", "spec", "privacy", "bytes a report", "epsilon", "best", "last", "seeds"],
        [_row(a, list(curves[a.name].values())) for a in _ARMS],
    )
    private = list(curves[_ARMS[-1].name].values())
    report.goal(
        "2nn: accuracy of the secure path with devices' noise",
        statistics.mean(max(c.accuracies) for c in private) if private else None,
        "reported at its epsilon",
        True if private else None,
        f"{len(private)} seed(s), {_ARMS[-1].spec}" if private else "out of budget; run it again",
    )


def _row(arm: _Arm, curves: list[Curve]) -> list[Any]:
    if not curves:
        return [arm.name, arm.spec, arm.privacy or "none", None, None, "not run", None, 0]
    epsilons = [c.epsilon for c in curves if c.epsilon is not None]
    return [
        arm.name,
        arm.spec,
        arm.privacy or "none",
        f"{statistics.mean(c.bytes_up[0] / _DEVICES for c in curves):,.0f}",
        f"{max(epsilons):.3g}" if epsilons else "-",
        f"{100 * statistics.mean(max(c.accuracies) for c in curves):.2f} %",
        f"{100 * statistics.mean(c.accuracies[-1] for c in curves):.2f} %",
        len(curves),
    ]
