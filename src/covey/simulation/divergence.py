"""Tell diverging training from the evaluations of a run."""

import math

from covey.recipes.recipe import Settings
from covey.simulation.report import RoundRow
from covey.types.errors import TrainingError

__all__ = ["Watch"]

_FACTOR = 10.0


class Watch:
    """Stops a run whose held-out loss is no number any more, or ten times that of its first evaluation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first: float | None = None

    def observe(self, row: RoundRow) -> None:
        """Judge a round.

        Raises:
            TrainingError: training has diverged; names the round and the likely cause.
        """
        if row.loss is None:
            return
        first = self._first = row.loss if self._first is None else self._first
        if math.isfinite(row.loss) and row.loss <= _FACTOR * max(first, 1e-6):
            return
        rates = f"--lr {self._settings.lr:g}"
        if self._settings.server_lr is not None:
            rates += f", --server-lr {self._settings.server_lr:g}"
        raise TrainingError(
            f"round {row.round}",
            expected=f"a held-out loss of at most {_FACTOR:g} times the first, {first:.4g}",
            got=f"{row.loss:.4g}",
            hint=f"training diverged: a lower learning rate ({rates}) usually cures it; --allow-divergence goes on",
        )
