"""A party: takes the steps in order, answers each once, and forgets what it no longer needs."""

import hashlib
from collections.abc import Callable, MutableSet, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from covey.secagg.identity import Identity, verify_certificate
from covey.secagg.party.advertise import Advertised, advertise
from covey.secagg.party.consistency import Signed, sign
from covey.secagg.party.mask import Masked, check_inputs, mask
from covey.secagg.party.share import Shared, share
from covey.secagg.party.unmask import unmask
from covey.secagg.session import Session
from covey.types.errors import (
    ConsistencyError,
    EnrolmentError,
    SecAggError,
    SecAggParameterError,
    SessionReusedError,
    StateError,
)

__all__ = ["Party"]


@dataclass(frozen=True, slots=True)
class _Fresh:
    pass


@dataclass(frozen=True, slots=True)
class _Done:
    """Answered everything, or failed a check; holds no secret."""


_State = _Fresh | Advertised | Shared | Masked | Signed | _Done
_Before = TypeVar("_Before", bound=_State)
_NAMES = {_Fresh: "nothing", Advertised: "advertise", Shared: "share", Masked: "mask", Signed: "sign", _Done: "the end"}


class Party:
    """One party in one session: bytes in, bytes out.

    ``advertise``, ``share``, ``mask``, in active mode ``sign``, then ``unmask``. Every message is produced once: taking
    a step again with the same request returns the same bytes, so a transport may retry as it likes, and with another
    request raises. A check that fails ends the session for this party and drops its secrets; the input is checked
    before anything happens, so a wrong input can be corrected. Secrets live in memory only and cannot be pickled: a
    restarted party is gone, and the session goes on without it.

    Not thread-safe.
    """

    def __init__(
        self,
        session: Session,
        index: int,
        *,
        randomness: Callable[[int], bytes],
        used_sessions: MutableSet[bytes],
        identity: Identity | None = None,
        now_s: int = 0,
    ) -> None:
        """Join a session.

        Args:
            session: as this party computed it from its own plan and downloads.
            index: assigned by the server, below ``n_max``.
            randomness: returns that many unpredictable bytes: ``os.urandom``. Nothing else will do outside tests.
            used_sessions: the ids of all sessions that this party was in; this one is added. Keep it as long as a
                server could replay a session.
            identity: in active mode, a certified identity key.
            now_s: in active mode, seconds since 1970 by the party's own clock, for expiry.

        Raises:
            SessionReusedError: the session was used before.
            SecAggParameterError: an index out of range.
            EnrolmentError: active mode without a valid identity, or an identity where none belongs.
        """
        if not 0 <= index < session.n_max:
            raise SecAggParameterError("party", expected=f"an index below {session.n_max}", got=str(index))
        if session.is_active != (identity is not None):
            raise EnrolmentError(
                "party", expected=f"{'an identity' if session.is_active else 'no identity'} in this mode",
                got="none" if identity is None else "one", hint="an active server needs an enrolment authority",
            )  # fmt: skip
        if identity is not None:
            verify_certificate(identity.certificate, session.authority, session.population, now_s)
            if identity.key.public_key().public_bytes_raw() != identity.certificate.identity_key:
                raise EnrolmentError("identity", expected="the certificate of this key", got="another key's")
        if session.id in used_sessions:
            raise SessionReusedError("session", expected="an id that was never used", got="one that was")
        used_sessions.add(session.id)
        self.session = session
        self.index = index
        self._source = randomness
        self._identity = identity
        self._now_s = now_s
        self._state: _State = _Fresh()
        self._answered: tuple[str, bytes, bytes] | None = None

    def __repr__(self) -> str:
        return f"Party(index={self.index}, after={_NAMES[type(self._state)]!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a party's secrets are never persisted: a restarted party is gone")

    def advertise(self) -> bytes:
        """Step 1: return an ``Advertisement``."""
        return self._step(
            "advertise", _Fresh, b"",
            lambda _, __: advertise(self.session, self.index, self._identity, self._randomness),
        )  # fmt: skip

    def share(self, roster: bytes) -> bytes:
        """Step 2: take the ``Roster``, return ``Shares``.

        Raises:
            SecAggMessageError, ThresholdError, PublicKeyError, EnrolmentError: the roster fails a check.
            StateError, ConsistencyError: not the step's turn, or another roster than the first time.
        """
        return self._step(
            "share", Advertised, roster,
            lambda state, m: share(state, self.session, m, self._now_s, self._randomness),
        )  # fmt: skip

    def mask(self, delivery: bytes, inputs: Sequence[NDArray[np.integer]]) -> bytes:
        """Step 3: take the ``Delivery`` and one integer vector for each segment, return the ``MaskedInput``.

        A retry returns the bytes of the first time whatever the inputs: a second input under the same masks would give
        both away.

        Raises:
            UpdateFormatError, UpdateRangeError: wrong inputs; nothing has happened, call again.
            SecAggMessageError, ThresholdError, ShareError: the delivery fails a check.
            StateError, ConsistencyError: not the step's turn, or another delivery than the first time.
        """
        if isinstance(self._state, Shared):
            check_inputs(self.session.segments[:-1], inputs)
        return self._step("mask", Shared, delivery, lambda state, m: mask(state, m, inputs))

    def sign(self, survivors: bytes) -> bytes:
        """Step 4, active mode: take the ``Survivors``, return a ``Signature``.

        Raises:
            SecAggMessageError, ThresholdError, ConsistencyError: the survivors fail a check.
            StateError: not the step's turn, or not active mode.
        """
        identity = self._identity
        if identity is None:
            raise StateError("sign", expected="active mode", got="honest-but-curious")
        return self._step("sign", Masked, survivors, lambda state, m: sign(state, identity, m))

    def unmask(self, request: bytes) -> bytes:
        """Step 5: take ``Survivors`` (active mode: ``Signatures``), return the ``Opening``; the session is over.

        Raises:
            SecAggMessageError, ThresholdError, ConsistencyError: the request fails a check.
            StateError: not the step's turn.
        """
        if self.session.is_active:
            return self._step("unmask", Signed, request, lambda state, m: (_Done(), unmask(state, m)))
        return self._step("unmask", Masked, request, lambda state, m: (_Done(), unmask(state, m)))

    def leave(self) -> None:
        """Drop all secrets: this party takes no further part."""
        self._state = _Done()
        self._answered = None
        self._identity = None

    def _step(
        self, name: str, before: type[_Before], request: bytes, take: Callable[[_Before, bytes], tuple[_State, bytes]]
    ) -> bytes:
        digest = hashlib.sha256(request).digest()
        if self._answered is not None and self._answered[0] == name:
            if self._answered[1] != digest:
                self.leave()
                raise ConsistencyError(name, expected="the same request as the first time", got="another")
            return self._answered[2]
        if not isinstance(self._state, before):
            after, needed = _NAMES[type(self._state)], _NAMES[before]
            raise StateError(name, expected=f"a party after {needed}", got=f"one after {after}")
        try:
            self._state, answer = take(self._state, request)
        except SecAggError:
            self.leave()
            raise
        self._answered = (name, digest, answer)
        return answer

    def _randomness(self, num_bytes: int) -> bytes:
        drawn = self._source(num_bytes)
        if len(drawn) != num_bytes:
            raise SecAggParameterError("randomness", expected=f"{num_bytes} bytes", got=f"{len(drawn)}")
        return drawn
