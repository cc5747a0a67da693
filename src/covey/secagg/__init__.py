"""Secure Aggregation: the server learns the sum over a large enough set, or nothing.

Vectors of integers go in, their modular sums come out; useful for anything that needs only a sum. Sans-I/O: messages
are bytes, randomness and executors are arguments. :func:`sum_in_process` for a first look, :class:`Party` and
:class:`Server` for transports; ``SPEC.md`` for implementers, ``docs/secure-aggregation.md`` for users.

**The threat model.** Every party adds to its input a mask of its own and one for each neighbour, which that neighbour
subtracts. What opens a dropout's masks or a survivor's own mask is shared among its neighbours, ``t`` of whom can
combine it; a party gives away one of the two, never both. So whoever holds all messages and the state of the
colluders learns:

- *honest-but-curious server* (:attr:`Mode.HONEST_BUT_CURIOUS`, SecAgg+), colluding with at most the share
  ``adversary`` of the parties, fixed before keys are advertised: the sum over the survivors, at least
  ``min_survivors``, and from it the sum of the honest ones. Assumes that the server follows the protocol: **no
  claim** about one that chooses neighbours, swaps keys or tells parties different things.
- *active server* (:attr:`Mode.ACTIVE`, Bonawitz et al. 2017), which may do all that, with as many colluders: the same
  sum or nothing. Assumes an enrolment authority that the application pins, that is not the coordinator, and that lets
  no more sybils through than ``adversary``. Every party checks signed keys, and unmasks only after ``t`` survivors
  signed that they were told the same session, keys and survivors; ``2 t > n_max + colluders``, so two stories never
  both reach ``t``.
- *parties, without the server*: nothing; they see public keys, ciphertexts for them, and who takes part.
- *the network*: an eavesdropper learns what the server learns, so the transport has to encrypt; and it has to
  authenticate who sent a message.

Two numbers, never to be confused: ``t`` shares open a secret; ``min_survivors`` inputs are in a sum. Both are pinned
in the plan, hold for each group by itself, and are recomputed by each party, never taken from the server.

**What stays undefended**: sybils beyond the assumed share; adversarial grouping; poisoned inputs; denial of service
(a liar is detected, not named, and nothing opens); differencing across rounds; what the exact sum itself reveals; a
device whose memory is read while a session runs; a bad source of randomness.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covey.secagg.identity import Certificate, EnrolmentAuthority, Identity
    from covey.secagg.in_process import run_in_process, smallest_segment, sum_in_process
    from covey.secagg.parameters import Parameters, find_parameters
    from covey.secagg.party import Party
    from covey.secagg.server import Opened, Server, Step
    from covey.secagg.session import Mode, Session

__all__ = [
    "Certificate",
    "EnrolmentAuthority",
    "Identity",
    "Mode",
    "Opened",
    "Parameters",
    "Party",
    "Server",
    "Session",
    "Step",
    "find_parameters",
    "run_in_process",
    "smallest_segment",
    "sum_in_process",
]

_HOME_OF = {
    "Certificate": "identity",
    "EnrolmentAuthority": "identity",
    "Identity": "identity",
    "Mode": "session",
    "Opened": "server",
    "Parameters": "parameters",
    "Party": "party",
    "Server": "server",
    "Session": "session",
    "Step": "server",
    "find_parameters": "parameters",
    "run_in_process": "in_process",
    "smallest_segment": "in_process",
    "sum_in_process": "in_process",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a device that trains has no memory for the server's half."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value
