"""Several runs side by side: what each needed to reach a target, and how far it came."""

from collections.abc import Sequence
from typing import Any

import msgspec

from covey.simulation.report import RunReport
from covey.simulation.target import Crossing

__all__ = ["ComparedRun", "common_target", "compare"]


class ComparedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a comparison.

    Attributes:
        name: how it is called here.
        algorithm: as it was asked for.
        differs: the settings and options in which the runs differ, by name.
        best_accuracy: the best of its curve; None where it has none.
        rounds: how many were committed.
        target_round, target_bytes, target_s: what the target took, interpolated; None where it was not reached.
        bytes: moved in all.
        seconds: real time.
        device_s: virtual seconds of the devices' sessions, by what they went to; see :class:`RunReport`.
    """

    name: str
    algorithm: str
    differs: dict[str, Any]
    best_accuracy: float | None
    rounds: int
    target_round: float | None
    target_bytes: float | None
    target_s: float | None
    bytes: int
    seconds: float
    device_s: dict[str, float] = {}


def common_target(reports: Sequence[RunReport]) -> float | None:
    """Return the target that the runs were given, the largest of them; None where no run had one."""
    return max((r.target for r in reports if r.target is not None), default=None)


def compare(names: Sequence[str], reports: Sequence[RunReport], target: float | None) -> list[ComparedRun]:
    """Return the rows of a comparison, in the order given.

    Args:
        names: of the runs.
        reports: theirs.
        target: a fraction that all are held to, or None.
    """
    settings = [{**r.settings, **r.options, "seed": r.seed} for r in reports]
    names_of = dict.fromkeys(k for s in settings for k in s)
    keys = [k for k in names_of if any(s.get(k) != settings[0].get(k) for s in settings)]
    return [
        _row(name, report, {k: own.get(k) for k in keys}, target)
        for name, report, own in zip(names, reports, settings, strict=True)
    ]


def _row(name: str, report: RunReport, differs: dict[str, Any], target: float | None) -> ComparedRun:
    crossed = Crossing.of(report.rounds, target)
    return ComparedRun(
        name=name,
        algorithm=report.algorithm,
        differs=differs,
        best_accuracy=max((r.accuracy for r in report.rounds if r.accuracy is not None), default=None),
        rounds=len(report.rounds),
        target_round=crossed.round,
        target_bytes=crossed.num_bytes,
        target_s=crossed.at_s,
        bytes=sum(r.bytes_up + r.bytes_down for r in report.rounds),
        seconds=report.seconds,
        device_s=report.device_s,
    )
