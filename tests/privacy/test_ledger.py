import math

import pytest

from covey.privacy.accounting import ORDERS, GaussianLoss, RenyiLoss, Spent, epsilon
from covey.privacy.ledger import admission, decode_loss, encode_loss, spent_by
from covey.types.errors import BudgetExhaustedError, PrivacyError

LOSSES = [GaussianLoss(1.0 / 3.0), RenyiLoss(tuple(math.pi * a for a in ORDERS))]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_come_back_to_the_last_bit(loss):
    assert decode_loss(encode_loss(loss)) == loss
    assert encode_loss(loss) == encode_loss(decode_loss(encode_loss(loss)))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"renyi": {"2": 1.0}}', b'{"laplace": 1}', b"\xff"])
def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(data):
    with pytest.raises(PrivacyError, match="a loss of this version"):
        spent_by({data: 1})


def test_the_budget_is_the_populations_across_plans():
    z = GaussianLoss(4.0)
    record = {encode_loss(z): 10, encode_loss(LOSSES[1]): 0}
    new = [Spent(z, 1)]
    exactly = epsilon([Spent(z, 11)], 1e-6)
    admission(new, exactly * (1 + 1e-9), 1e-6)(record)
    admission(new, None, 1e-6)(record)
    with pytest.raises(BudgetExhaustedError, match="is spent already"):
        admission(new, exactly * (1 - 1e-9), 1e-6)(record)
    with pytest.raises(BudgetExhaustedError):
        admission([], exactly / 2, 1e-6)(record)
