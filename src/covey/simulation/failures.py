"""Why rounds fail in a simulation, and when that ends the run: nobody is there to mend anything."""

from collections import Counter

from covey.server.settings import RoundSettings
from covey.simulation.messages import Ended
from covey.types.errors import BudgetExhaustedError, CoveyError, TrainingError
from covey.wire.messages import RoundSummary

__all__ = ["DROPPED", "Failures"]

DROPPED = "condition_lapsed"
"""The reason of a device that gave up because its conditions lapsed: nothing that training did."""

_MOST_FAILURES = 10
"""So many abandoned rounds in a row end a simulation."""

_HINTS = {
    "training_not_finite": "training diverged: a lower learning rate (--lr) usually cures it",
    "update_range": "training diverged: a lower learning rate (--lr) usually cures it",
    "too_few_examples": "give every device at least one example: fewer devices, or another partition",
}


class Failures:
    """The failed sessions of the attempt at hand."""

    def __init__(self, rounds: RoundSettings, *, lenient: bool = False) -> None:
        """Judge rounds of these settings; ``lenient``: only rounds that fail time after time end the run."""
        self._rounds, self._lenient = rounds, lenient
        self._failed: list[Ended] = []

    def begin(self) -> None:
        """Forget the former attempt's."""
        self._failed = []

    def note(self, ended: Ended) -> None:
        """Note how a session ended."""
        if ended.code and ended.code != DROPPED:
            self._failed.append(ended)

    def paused(self, summary: RoundSummary) -> CoveyError:
        """Return why no round will begin any more: the server paused the task after the row ``summary``."""
        where = f"round {summary.round}"
        if summary.reason == BudgetExhaustedError.code:
            return _spent(where)
        return TrainingError(
            where,
            expected="a training that goes on",
            got=f"one that the server paused ({summary.reason})",
            hint=f"see docs/errors.md for {summary.reason}",
        )

    def check(self, summary: RoundSummary, abandoned: int) -> None:
        """Raise what explains an abandoned round, the ``abandoned``-th in a row; nothing if another try may do.

        Raises:
            BudgetExhaustedError: the population may open no further sum.
            TrainingError: devices failed, or the sum could not be applied, or nobody finishes.
        """
        where = f"round {summary.round}"
        if summary.reason == BudgetExhaustedError.code:
            raise _spent(where)
        if self._failed and not (self._lenient and abandoned < _MOST_FAILURES):
            code, count = Counter(f.code for f in self._failed).most_common(1)[0]
            cause = next(f.message for f in self._failed if f.code == code)
            raise TrainingError(
                where,
                expected=f"reports from at least {self._rounds.at_least} devices",
                got=f"{summary.reported}; {count} of {summary.selected} failed: {cause}",
                hint=_HINTS.get(code, "see docs/errors.md for " + code),
            )
        if not self._lenient and summary.reason not in ("too_many_lost", "too_few_reports", "too_few_devices"):
            raise TrainingError(
                where,
                expected="a sum that can be applied",
                got=summary.reason,
                hint="training may have diverged: a lower learning rate usually cures it",
            )
        if abandoned >= _MOST_FAILURES:
            raise TrainingError(
                where,
                expected="enough devices that finish",
                got=f"{abandoned} abandoned rounds in a row ({summary.reason})",
                hint="lower the dropout, select more devices than the round needs, or give them more time",
            )


def _spent(where: str) -> BudgetExhaustedError:
    return BudgetExhaustedError(
        where,
        expected="a budget that allows one more sum",
        got="a population that has spent it",
        hint="abandoned rounds are charged too once their sum was opened: a larger budget, or more noise",
    )
