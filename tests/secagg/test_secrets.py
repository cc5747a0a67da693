"""Nothing secret is shown, kept or persisted."""

import pickle

import pytest

from covey.secagg import Step
from covey.types.errors import (
    ShareError,
)
from secagg.sessions import AUTHORITY, BOTH, Run, at, is_over, session


@BOTH
def test_secrets_are_dropped_with_the_step_that_needs_them(mode):
    run = Run(session(mode)).until(Step.SHARE)
    mask_private, cipher = run.parties[0]._state.mask_private, run.parties[0]._state.cipher
    run.until(Step.MASK)
    state = run.parties[0]._state
    assert not hasattr(state, "cipher") and cipher is not None
    self_seed = state.self_seed
    run.until(Step.CONSISTENCY)
    held = _bytes_in(run.parties[0]._state)
    assert mask_private not in held and self_seed not in held
    run.open()
    for who in run.parties.values():
        assert is_over(who) and not _bytes_in(who._state)


def _bytes_in(value, seen=None) -> set:
    """All byte strings that can be reached from a state."""
    if isinstance(value, bytes):
        return {value}
    if isinstance(value, dict):
        return set().union(*map(_bytes_in, value.values()), set())
    if isinstance(value, tuple | list):
        return set().union(*map(_bytes_in, value), set())
    fields = getattr(type(value), "__dataclass_fields__", {})
    return set().union(*(_bytes_in(getattr(value, f)) for f in fields), set())


@BOTH
def test_nothing_secret_is_printed_or_persisted(mode):
    run = Run(session(mode))
    shown = []
    while run.server.step < Step.OPEN:
        for who in run.parties.values():
            shown += [repr(who), repr(who._state), repr(who._identity), str(who)]
            with pytest.raises(TypeError, match="never persisted"):
                pickle.dumps(who)
        shown += [repr(run.server), repr(AUTHORITY)]
        run.collect()
        run.told = run.server.close_step()
    text = "".join(shown)
    assert "\\x" not in text and "bytes" not in text and len(max(shown, key=len)) < 200


def test_errors_show_no_data():
    run = at(Step.MASK)
    with pytest.raises(ShareError) as caught:
        run.answer(0, run.told[0][:-1] + b"\0")
    assert "\\x" not in str(caught.value) + caught.value.hint and len(str(caught.value)) < 200
