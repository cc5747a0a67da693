"""A whole session in one process: for a first look, for tests, and for simulations."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from covey.secagg.identity import EnrolmentAuthority
from covey.secagg.party import Party
from covey.secagg.server import Opened, Server, Step
from covey.secagg.session import Mode, Session
from covey.types.errors import SecAggParameterError
from covey.types.segments import Segment

__all__ = ["run_in_process", "smallest_segment", "sum_in_process"]

_POPULATION = "in-process"


def sum_in_process(
    vectors: Sequence[NDArray[np.integer]],
    *,
    mode: Mode,
    bound: int,
    min_survivors: int,
    randomness: Callable[[int], bytes],
    adversary: float = 0.05,
    dropout: float = 0.10,
    dropouts: Mapping[int, Step] | None = None,
    executor: Executor | None = None,
    num_tasks: int = 1,
) -> Opened:
    """Sum one vector of each party by the whole protocol, in this process.

    Args:
        vectors: one integer vector for each party, all of one length.
        mode: what is assumed of the server; in active mode an enrolment authority is made up.
        bound: the largest magnitude of any coordinate.
        min_survivors: the fewest inputs that may be summed.
        randomness: returns that many unpredictable bytes: ``os.urandom``.
        adversary: the share of parties that the parameters assume to collude.
        dropout: the share of parties that they assume to vanish.
        dropouts: for each party that vanishes, the step whose message it does not send any more.
        executor: of processes; see :meth:`Server.open`.
        num_tasks: into how many parts unmasking is cut.

    Raises:
        ThresholdError: too many parties vanished; nothing was opened.
        SecAggParameterError, LayoutError, UpdateFormatError, UpdateRangeError: unsafe numbers or wrong vectors.

    Example:
        >>> import os
        >>> import numpy as np
        >>> from covey import secagg
        >>> votes = [np.array([1, 0, i]) for i in range(10)]
        >>> opened = secagg.sum_in_process(
        ...     votes, mode=secagg.Mode.HONEST_BUT_CURIOUS, bound=10, min_survivors=5, randomness=os.urandom,
        ...     dropouts={9: secagg.Step.MASK},
        ... )
        >>> opened.sums[0].tolist(), len(opened.survivors)
        ([9, 0, 36], 9)
    """
    if not vectors:
        raise SecAggParameterError("vectors", expected="at least 3", got="none")
    segment = smallest_segment("vector", int(np.size(vectors[0])), bound, len(vectors))
    authority = None
    if mode is Mode.ACTIVE:
        authority = EnrolmentAuthority(Ed25519PrivateKey.from_private_bytes(randomness(32)), _POPULATION)
    session = Session.plan(
        mode, [segment], n_max=len(vectors), min_survivors=min_survivors, adversary=adversary, dropout=dropout,
        population=_POPULATION, round_id=randomness(16).hex(), authority=authority.public_key if authority else b"",
    )  # fmt: skip
    return run_in_process(
        session, [[v] for v in vectors], randomness=randomness, authority=authority, dropouts=dropouts,
        executor=executor, num_tasks=num_tasks,
    )  # fmt: skip


def run_in_process(
    session: Session,
    inputs: Sequence[Sequence[NDArray[np.integer]]],
    *,
    randomness: Callable[[int], bytes],
    authority: EnrolmentAuthority | None = None,
    dropouts: Mapping[int, Step] | None = None,
    executor: Executor | None = None,
    num_tasks: int = 1,
) -> Opened:
    """Run a session whose parties and server are all here: ``inputs[i]`` are party ``i``'s vectors, one a segment.

    Args:
        session: of at least as many parties as there are inputs.
        inputs: of the parties.
        randomness: see :func:`sum_in_process`.
        authority: in active mode, what certifies the parties; the session pins its public key.
        dropouts: see :func:`sum_in_process`.
        executor: see :func:`sum_in_process`.
        num_tasks: see :func:`sum_in_process`.

    Raises:
        ThresholdError: too many parties vanished; nothing was opened.
    """
    gone = dropouts or {}
    parties: dict[int, Party] = {}
    for index in range(len(inputs)):
        identity = None
        if authority is not None:
            identity = authority.enrol(Ed25519PrivateKey.from_private_bytes(randomness(32)), expires_at=1)
        parties[index] = Party(session, index, randomness=randomness, used_sessions=set(), identity=identity)
    server = Server(session, used_sessions=set())
    told = dict.fromkeys(parties, b"")
    while server.step < Step.OPEN:
        for index, message in told.items():
            if index not in gone or server.step < gone[index]:
                server.accept(index, _answer(parties[index], server.step, message, inputs[index]))
        told = server.close_step()
    return server.open(executor, num_tasks)


def smallest_segment(name: str, length: int, bound: int, n_max: int) -> Segment:
    """Return a signed segment in the smallest ring in which ``n_max`` times ``bound`` cannot wrap.

    Raises:
        LayoutError: not even 64 bits suffice.
    """
    bits = max(8, (n_max * bound).bit_length() + 1)
    return Segment(name, length, bound, n_max, ring_bits=bits if bits <= 32 else 64)


def _answer(party: Party, step: Step, message: bytes, inputs: Sequence[NDArray[np.integer]]) -> bytes:
    match step:
        case Step.ADVERTISE:
            return party.advertise()
        case Step.SHARE:
            return party.share(message)
        case Step.MASK:
            return party.mask(message, inputs)
        case Step.CONSISTENCY:
            return party.sign(message)
        case _:
            return party.unmask(message)
