"""What a population has spent, and whether it may open one more sum.

Rules: every opened sum is charged, by every task, across runs and restarts; it is charged *before* it is opened, in one
transaction with the check that the budget allows it; and nothing is ever given back, also not for a round that failed
after its charge. Rows are storage's business (:mod:`covey.storage.interface`): what is here says what they mean.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from covey.privacy.accounting import ORDERS, GaussianLoss, Loss, RenyiLoss, Spent, epsilon
from covey.types.errors import BudgetExhaustedError, PrivacyError

__all__ = ["admission", "decode_loss", "encode_loss", "spent_by"]


def encode_loss(loss: Loss) -> bytes:
    """Return a loss as it is stored: JSON, the same bytes for the same loss, floats to the last bit."""
    match loss:
        case GaussianLoss(noise_multiplier=z):
            return json.dumps({"gaussian": z}).encode()
        case RenyiLoss(curve=curve):
            return json.dumps({"renyi": dict(zip(ORDERS, curve, strict=True))}).encode()


def decode_loss(data: bytes) -> Loss:
    """Invert :func:`encode_loss`.

    Raises:
        PrivacyError: not a loss of this version: a ledger that cannot be read must not look like an empty one.
    """
    try:
        value = json.loads(data)
        if set(value) == {"gaussian"}:
            return GaussianLoss(float(value["gaussian"]))
        (curve,) = (value["renyi"],)
        return RenyiLoss(tuple(float(curve[str(order)]) for order in ORDERS))
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PrivacyError(
            "privacy ledger", expected="a loss of this version", got=type(e).__name__, hint="upgrade Covey"
        ) from e


def spent_by(record: Mapping[bytes, int]) -> tuple[Spent, ...]:
    """Return what a ledger's record, from stored loss to times, amounts to."""
    return tuple(Spent(decode_loss(data), times) for data, times in record.items())


def admission(new: Sequence[Spent], budget: float | None, delta: float) -> Callable[[Mapping[bytes, int]], None]:
    """Return the check that a charge of ``new`` must pass: a function of what is already spent.

    Args:
        new: what would be charged.
        budget: the largest epsilon that the population may spend in all; None: any.
        delta: at which epsilon is told.

    Raises (from the returned function):
        BudgetExhaustedError: the population would have spent more than its budget.
    """

    def admit(record: Mapping[bytes, int]) -> None:
        if budget is None:
            return
        before = spent_by(record)
        after = epsilon((*before, *new), delta)
        if after > budget:
            raise BudgetExhaustedError(
                "privacy budget",
                expected=f"epsilon of at most {budget:g} for the population, at delta {delta:.2g}",
                got=f"{after:.4g} with this; {epsilon(before, delta):.4g} is spent already",
                hint="what was spent is never given back: a larger budget in a new plan, or fewer rounds",
            )

    return admit
