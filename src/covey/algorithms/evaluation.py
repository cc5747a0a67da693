"""Evaluation, the server half: the sum is read, and nothing moves.

Where there is a second model to compare with, it is what ``extra`` holds; the devices get it as ``shared``.
"""

from collections.abc import Mapping

from covey.algorithms.algorithm import Algorithm, ServerPhase, ServerState

__all__ = ["evaluation"]


def evaluation(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; it has no settings."""
    return Algorithm(
        name="evaluation",
        init=ServerState,
        phases=(ServerPhase(shared=lambda state: state.extra, apply=lambda state, aggregate: state),),
    )
