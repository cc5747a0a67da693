"""What a run gives: one object that the demo, the simulation and the benchmarks print and write alike."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import msgspec

from covey.privacy.guarantee import Guarantee

__all__ = ["RoundRow", "RunReport", "accuracy_and_loss", "time_shares", "versions"]


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """One committed round.

    ``accuracy`` is a fraction of the held-out predictions and ``loss`` their mean, None where the round was not
    evaluated (or the task counts no ``correct``); bytes are payloads, ``seconds`` the time that passed, and ``at_s``
    the virtual time at which the round was committed.
    """

    round: int
    accuracy: float | None
    loss: float | None
    bytes_up: int
    bytes_down: int
    selected: int
    reported: int
    lost: int
    seconds: float
    at_s: float = 0.0


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run, as ``--json`` writes it.

    Attributes:
        recipe: its name or path.
        algorithm: the plan's.
        seed: of the run.
        mode: ``plain`` or ``secure``.
        settings: how it was trained.
        options: what else decides a run: how devices behave, over-selection, the deadline, privacy.
        versions: of Python and the packages that compute.
        plan: SHA-256 of the plan.
        checkpoint: SHA-256 of the last parameters: two runs are the same bits where these are equal.
        rounds: the committed rounds.
        target: the accuracy that was asked for, or None.
        target_round: where the monotone curve crosses it, interpolated; None where it does not.
        client_steps: local steps of all counted devices.
        seconds: from the command to the end.
        bytes_up: of all rounds.
        bytes_down: of all rounds.
        target_bytes: bytes up and down until then, interpolated; target_s: virtual seconds.
        traffic: what the bytes were: ``up: model``, ``down: plan`` and so on.
        device_s: what the time of all sessions went to, in virtual seconds, summed over devices: ``download``,
            ``training`` and ``upload`` of those that were counted, ``waiting`` from their reports to the close of
            their rounds, and ``lost``: sessions that were not counted, to their end or to the close.
        device_accuracy: of the last model on single devices' own examples; empty unless it was asked for.
        device_examples: which those were: ``held out`` or ``training``.
        stopped: why the run ended early, where it was told to go on although training diverged; empty: it did not.
        privacy: what was promised, with its assumptions, or None. A simulation's noise is seeded: never private.
    """

    recipe: str
    algorithm: str
    seed: int
    mode: str
    settings: dict[str, Any]
    versions: dict[str, str]
    plan: str
    checkpoint: str
    rounds: list[RoundRow]
    target: float | None
    target_round: float | None
    client_steps: int
    seconds: float
    bytes_up: int
    bytes_down: int
    privacy: Guarantee | None = None
    target_bytes: float | None = None
    target_s: float | None = None
    traffic: dict[str, int] = {}
    options: dict[str, Any] = {}
    device_s: dict[str, float] = {}
    device_accuracy: list[float] = []
    device_examples: str = ""
    stopped: str = ""


def time_shares(device_s: Mapping[str, float]) -> dict[str, float]:
    """Return which part of the devices' time went where, by kind; nothing where all of it was training."""
    total = sum(device_s.values())
    if total <= device_s.get("training", 0.0):
        return {}
    return {kind: seconds / total for kind, seconds in device_s.items()}


def accuracy_and_loss(sums: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return ``correct / weight`` and ``loss / weight`` of evaluation sums; None where there is nothing to divide."""
    weight = sums.get("weight", 0.0)
    if not weight:
        return None, None
    correct = sums.get("correct")
    return None if correct is None else correct / weight, sums["loss"] / weight


def versions() -> dict[str, str]:
    """Return the versions of Python, Covey and what computes; a package that is not installed is left out."""
    out = {"python": platform.python_version()}
    for name in ("covey", "numpy", "onnxruntime", "jax"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out
