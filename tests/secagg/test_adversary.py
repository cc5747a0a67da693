"""An adversary with all that the server saw and colluders told it: below the thresholds it opens nothing."""

from itertools import combinations

import pytest

from covey.secagg import Step
from covey.secagg.encoding import HEADER_BYTES, bitmap
from covey.secagg.keys import SHARE_BYTES, commitment, public_key
from covey.secagg.messages import Opening, Signatures, Survivors, transcript
from covey.secagg.parameters import active_quorum
from covey.secagg.shamir import combine
from covey.types.errors import ConsistencyError, ThresholdError
from secagg.sessions import ACTIVE, HBC, Run, pieces, session

N, T = 7, 4


def view(run: Run, colluders) -> dict[tuple[str, int], dict[int, bytes]]:
    """All shares that server and colluders have together: by kind and owner, then by the holder's coordinate."""
    found: dict[tuple[str, int], dict[int, bytes]] = {}
    for who in colluders:
        state = run.parties[who]._state
        for p, held in getattr(state, "held", {}).items():
            found.setdefault(("mask", p), {})[who + 1] = held.mask_key
            found.setdefault(("self", p), {})[who + 1] = held.self_seed
    for (step, who), message in run.sent.items():
        if step is Step.UNMASK:
            survivors = {i for (s, i) in run.sent if s is Step.MASK}
            owners = sorted(i for (s, i) in run.sent if s is Step.SHARE)
            shares = pieces(Opening.decode(run.session, who, message, len(owners)).shares, SHARE_BYTES)
            for owner, share in zip(owners, shares, strict=True):
                found.setdefault(("self" if owner in survivors else "mask", owner), {})[who + 1] = share
    return found


def opens(run: Run, kind: str, owner: int, shares: dict[int, bytes]) -> bool:
    """Whether any set of the shares combines to what the owner published."""
    entry = run.groups[owner]
    for size in range(1, len(shares) + 1):
        for chosen in combinations(shares, size):
            secret = combine({x: shares[x] for x in chosen})
            if kind == "mask" and public_key(secret) == entry.mask_key:
                return True
            if kind == "self" and commitment(run.scope, secret, owner) == run.commitments[owner]:
                return True
    return False


def remember(run: Run) -> Run:
    """Keep what the server knows in public, before it forgets it."""
    sharing = run.server._sharing
    run.groups = {i: sharing.group.entry(i) for i in range(N)}
    run.scope, run.commitments = sharing.group.scope, dict(sharing.commitments)
    return run


@pytest.mark.parametrize("mode", [HBC, ACTIVE])
def test_below_the_threshold_no_secret_of_anybody_opens(mode):
    t = T if mode is HBC else 5
    gone = dict.fromkeys(range(t - 1, N), Step.UNMASK)  # t - 1 parties answer
    run = Run(session(mode, n_max=N, threshold=t, min_survivors=4), gone=gone)
    remember(run.until(Step.MASK)).until(Step.UNMASK)
    run.collect()
    found = view(run, colluders=())
    assert len(found) == N and all(len(s) == t - 1 for s in found.values())
    assert not any(opens(run, kind, owner, shares) for (kind, owner), shares in found.items())
    with pytest.raises(ThresholdError):
        run.server.close_step()


def test_with_the_threshold_exactly_the_asked_kind_opens():
    """The same adversary succeeds with one share more: the test above can fail."""
    run = Run(session(n_max=N, threshold=T, min_survivors=4), gone={6: Step.MASK, 5: Step.UNMASK, 4: Step.UNMASK})
    remember(run.until(Step.MASK)).until(Step.UNMASK)
    run.collect()
    found = view(run, colluders=())
    assert all(opens(run, kind, owner, shares) for (kind, owner), shares in found.items())
    assert {kind for kind, owner in found if owner == 6} == {"mask"}
    assert {kind for kind, owner in found if owner != 6} == {"self"}


def test_t_minus_1_colluders_learn_neither_secret_of_an_honest_party():
    run = Run(session(n_max=N, threshold=T, min_survivors=5, num_adversaries=3))
    remember(run.until(Step.MASK)).until(Step.UNMASK)
    colluders = range(T - 1)
    found = view(run, colluders)
    for owner in range(T - 1, N):
        for kind in ("mask", "self"):
            assert len(found[kind, owner]) == T - 1
            assert not opens(run, kind, owner, found[kind, owner])


def test_no_honest_partys_both_secrets_open_after_an_honest_run():
    """After a full run the server has t shares of one kind for everybody; with c colluders still not t of the other."""
    run = Run(session(n_max=N, threshold=T, min_survivors=5, num_adversaries=2), gone={6: Step.MASK})
    remember(run.until(Step.MASK)).until(Step.UNMASK)
    colluders = (0, 1)
    before = view(run, colluders)
    run.collect()
    found = view(run, ())
    for kind, owner in before:
        found.setdefault((kind, owner), {}).update(before[kind, owner])
    for owner in range(2, N):
        opened = {kind for kind in ("mask", "self") if opens(run, kind, owner, found.get((kind, owner), {}))}
        assert opened == ({"mask"} if owner == 6 else {"self"})


def splits_that_open_both_kinds(t: int, c: int = 2) -> list[tuple[int, ...]]:
    """Tell the honest parties one of two stories about party 2, in all ways; colluders give all and sign anything."""
    honest = [i for i in range(N) if i >= c]
    others = [i for i in honest if i != 2]
    found = []
    for told_dead in (d for size in range(len(others) + 1) for d in combinations(others, size)):
        run = Run(session(ACTIVE, n_max=N, threshold=t, min_survivors=4, num_adversaries=c)).until(Step.CONSISTENCY)
        dead = Survivors(bitmap([i for i in range(N) if i != 2], N)).encode(run.session)
        signed = {i: run.answer(i, dead if i in told_dead else None) for i in honest}
        answered = {True: 0, False: 0}
        for is_dead, listeners in ((True, told_dead), (False, [i for i in honest if i not in told_dead])):
            signatures = _signatures(run, signed, listeners, range(c), is_dead)
            for i in listeners:
                try:
                    run.parties[i].unmask(signatures)
                except (ThresholdError, ConsistencyError):
                    continue
                answered[is_dead] += 1
        if all(n + c >= t for n in answered.values()):
            found.append(told_dead)
    return found


def test_an_active_server_cannot_get_both_kinds_by_any_split(monkeypatch):
    quorum = active_quorum(N, 2)
    assert splits_that_open_both_kinds(quorum) == []
    # one less, which no session accepts, and the same adversary succeeds: the line above can fail
    monkeypatch.setattr("covey.secagg.session.active_quorum", lambda n_max, c: quorum - 1)
    assert splits_that_open_both_kinds(quorum - 1) != []


def _signatures(run, signed, listeners, colluders, is_dead):
    """The best that a server can send to one side: that side's signatures and the colluders' under its story."""
    group, masked = run.server._sharing.group, run.server._masking
    sharers = bitmap(masked.sharers, N)
    survivors = bitmap([i for i in range(N) if not (is_dead and i == 2)], N)
    statement = transcript(run.session, group.scope.root, sharers, survivors)
    found = {i: signed[i][HEADER_BYTES:] for i in listeners if not (is_dead and i == 2)}
    found |= {i: run.parties[i]._identity.key.sign(statement) for i in colluders}
    return Signatures(tuple(sorted(found.items()))).encode(run.session)
