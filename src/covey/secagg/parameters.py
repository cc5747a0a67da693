"""How many neighbours and how large a threshold: the numbers of SecAgg+ and what of them is used.

Bell et al. (2020), section 3.2, in the form of the production implementation. For ``n`` parties of which a share
``gamma`` is corrupt and a share ``delta`` drops out, the table's ``k`` is the smallest even degree such that

1. two honest parties are isolated from each other with probability below ``2^-(sigma + 1)``:
   ``n (n - k - 1) / 2 * C(n - k, bad - k) / C(n, bad)`` with ``bad = floor(gamma n) + floor(delta n)``;
2. with ``t1`` the smallest number for which any party has more than ``t1`` corrupt neighbours with probability at most
   ``2^-(sigma + 1) / n`` (hypergeometric), and ``t2`` the ``2^-eta / n`` lower quantile of its surviving neighbours,
   ``t = max(t1 + 1, 2)`` and ``t1 < t2``. Against a server that asks different neighbours for the two kinds of shares
   ("semi-malicious") ``t1`` becomes ``ceil((t1 + k - 1.25) / 2)``.

**What is used differs on purpose.** ``floor`` lets the adversary vanish in small groups (5 % of 10 is nobody), so the
used numbers take ``ceil`` and at least one adversary. Up to 128 parties the graph is complete, because it is cheap
there and the bounds above are meant for large ``n``; at ``n = 10`` the table gives ``k = 2``, which is not safe.
Against an active server the graph is complete, in groups of at most 512, and ``t`` is the 2017 protocol's quorum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from covey.types.errors import SecAggParameterError

__all__ = [
    "COMPLETE_UP_TO",
    "MAX_GROUP_ACTIVE",
    "MAX_PARTIES",
    "Bits",
    "Parameters",
    "active_quorum",
    "find_parameters",
    "table",
]

SIGMA_BITS = 40
ETA_BITS = 20
COMPLETE_UP_TO = 128
"""Group size up to which the graph is complete in either mode."""
MAX_PARTIES = 1 << 14
"""In one group: every party downloads the public keys of all."""
MAX_GROUP_ACTIVE = 512
"""In one group against an active server, where every party shares with every other."""
_LARGEST_COHORT = 10**9


@dataclass(frozen=True, slots=True)
class Bits:
    """How unlikely each failure is: it happens with probability ``2**-bits``; infinite where it cannot.

    Attributes:
        isolation_bits: that some honest parties are cut off from the others.
        exposure_bits: that any honest party has ``t`` or more corrupt neighbours.
        failure_bits: that any party is left with fewer than ``t`` surviving neighbours, so that nothing opens.
    """

    isolation_bits: float
    exposure_bits: float
    failure_bits: float


@dataclass(frozen=True, slots=True)
class Parameters:
    """The table's numbers and the used ones.

    Attributes:
        num_parties: ``n`` as asked.
        adversary, dropout: shares as asked.
        mode: ``honest-but-curious`` or ``active``.
        k, t: the table's degree and threshold (semi-malicious rows for ``active``); None where no degree satisfies.
        k_used, t_used: what a session is built with, for one group.
        num_groups, group_size: how a cohort is split; the largest group.
        num_adversaries, num_dropouts: counted in one group, rounded up.
        bits: for ``k`` and ``t``; None where there are none.
        bits_used: for ``k_used`` and ``t_used``.
    """

    num_parties: int
    adversary: float
    dropout: float
    mode: str
    k: int | None
    t: int | None
    k_used: int
    t_used: int
    num_groups: int
    group_size: int
    num_adversaries: int
    num_dropouts: int
    bits: Bits | None
    bits_used: Bits


def active_quorum(n_max: int, num_adversaries: int) -> int:
    """Return the threshold of Bonawitz et al. (2017) against an active server.

    With ``2 t > n + c`` no two sets of honest parties, disjoint but for the ``c`` corrupt ones that answer in both, can
    each reach ``t``: a server cannot get one party's two kinds of shares by telling two halves different stories.
    """
    return (n_max + num_adversaries) // 2 + 1


def find_parameters(num_parties: int, adversary: float, dropout: float, *, active: bool) -> Parameters:
    """Return degree and threshold for a cohort, as the table has them and as they are used.

    Args:
        num_parties: the most parties selected, 3 to a billion.
        adversary: share of them that may collude with the server, 0 to below 1.
        dropout: share of them that may vanish between advertising and unmasking, 0 to below 1. Secure aggregation
            starts after training, so only that short phase counts.
        active: whether the server may deviate from the protocol.

    Raises:
        SecAggParameterError: shares out of range, or no numbers are safe and survive the dropout.
    """
    if not 3 <= num_parties <= _LARGEST_COHORT:
        raise SecAggParameterError("parties", expected=f"3 to {_LARGEST_COHORT}", got=str(num_parties))
    for name, share in (("adversary", adversary), ("dropout", dropout)):
        if not 0 <= share < 1:  # a NaN is refused too
            raise SecAggParameterError(name, expected="a share from 0 to below 1", got=f"{share}")
    raw = table(num_parties, adversary, dropout, semi_malicious=active)
    num_groups = -(-num_parties // (MAX_GROUP_ACTIVE if active else MAX_PARTIES))
    size = -(-num_parties // num_groups)
    corrupt = max(1, math.ceil(_exact(adversary) * size))
    dropped = math.ceil(_exact(dropout) * size)
    k, t = _used(size, corrupt, dropped, active=active)
    found_k, found_t = raw or (None, None)
    asked = _Population.of_shares(num_parties, adversary, dropout)
    return Parameters(
        num_parties, adversary, dropout, "active" if active else "honest-but-curious", found_k, found_t, k, t,
        num_groups, size, corrupt, dropped, asked.bits(*raw, active) if raw else None,
        _Population(size, corrupt, dropped).bits(k, t, active),
    )  # fmt: skip


def table(
    num_parties: int, adversary: float, dropout: float, *, semi_malicious: bool = False
) -> tuple[int, int] | None:
    """Return the table's ``(k, t)``, or None where no degree below ``n - 1`` satisfies; **unsafe for small n**."""
    return _Population.of_shares(num_parties, adversary, dropout).smallest(semi_malicious)


def _used(size: int, corrupt: int, dropped: int, *, active: bool) -> tuple[int, int]:
    quorum = active_quorum(size, corrupt)
    survivors = size - dropped
    if not active and size > COMPLETE_UP_TO:
        found = _Population(size, corrupt, dropped).smallest(semi_malicious=False)
        if found is None:
            raise SecAggParameterError(
                f"a group of {size}",
                expected="a degree at which nobody is exposed and the sum still opens",
                got="none",
                hint="assume less dropout or fewer adversaries, or make smaller groups",
            )
        return found
    if corrupt + 1 > survivors or (active and quorum > survivors):
        need = quorum if active else corrupt + 1
        raise SecAggParameterError(
            f"a group of {size}", expected=f"at least {need} survivors: {corrupt} may be corrupt",
            got=f"{survivors} after the dropout", hint="assume less dropout or fewer adversaries, or enlarge the group",
        )  # fmt: skip
    # In a complete graph any t above the number of the corrupt is private against an honest server. The quorum costs
    # nothing as long as the dropout allows it, and also holds if the server is not that honest.
    return size - 1, min(quorum, survivors)


def _exact(share: float) -> Fraction:
    """Return the decimal that was typed: 0.05 * 1000 is 50, and its ceiling is not 51."""
    return Fraction(str(share))


@dataclass(frozen=True, slots=True)
class _Population:
    n: int
    corrupt: int
    dropped: int

    @classmethod
    def of_shares(cls, n: int, adversary: float, dropout: float) -> "_Population":
        return cls(n, math.floor(_exact(adversary) * n), math.floor(_exact(dropout) * n))

    def smallest(self, semi_malicious: bool) -> tuple[int, int] | None:
        for k in range(2, self.n - 1, 2):
            if self.log2_isolated(k) >= -(SIGMA_BITS + 1):
                continue
            t1 = self.corrupt_quantile(k)
            if semi_malicious:
                t1 = math.ceil((t1 + k - 1.25) / 2)
            if t1 < self.surviving_quantile(k):
                return k, max(t1 + 1, 2)
        return None

    def log2_isolated(self, k: int) -> float:
        n, bad = self.n, self.corrupt + self.dropped
        if k > bad or k >= n - 1:
            return -math.inf
        pairs = math.log(n) + math.log(n - k - 1) - math.log(2)
        ways = math.lgamma(bad + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 1) - math.lgamma(bad - k + 1)
        return (pairs + ways) / math.log(2)

    def corrupt_quantile(self, k: int) -> int:
        """Return the smallest x with P[more than x corrupt neighbours] <= 2^-(sigma + 1) / n."""
        limit = 2.0 ** -(SIGMA_BITS + 1) / self.n
        mass, x, pmf = 0.0, min(k, self.corrupt), _hypergeometric(self.n, self.corrupt, k)
        while x >= 0 and mass + pmf(x) <= limit:
            mass += pmf(x)
            x -= 1
        return x

    def surviving_quantile(self, k: int) -> int:
        """Return the smallest x with P[at most x surviving neighbours] >= 2^-eta / n."""
        limit = 2.0**-ETA_BITS / self.n
        mass, x, pmf = 0.0, max(0, k - self.dropped), _hypergeometric(self.n, self.n - self.dropped, k)
        while x <= k:
            mass += pmf(x)
            if mass >= limit:
                break
            x += 1
        return x

    def bits(self, k: int, t: int, semi_malicious: bool) -> Bits:
        # the server needs t corrupt neighbours; if it asks two sets of neighbours, twice t less all the honest ones
        corrupt = _hypergeometric(self.n - 1, self.corrupt, k)
        survivors = self.n - self.dropped
        enough = 2 * t - k if semi_malicious else t
        exposed = math.fsum(corrupt(x) for x in range(max(0, enough), min(k, self.corrupt) + 1))
        # a surviving party holds one share of its own seed, so t - 1 others suffice; for a dropped one it takes t
        alive = _hypergeometric(self.n - 1, max(0, survivors - 1), k)
        failed = survivors * math.fsum(alive(x) for x in range(t - 1))
        if self.dropped:
            around = _hypergeometric(self.n - 1, survivors, k)
            failed += self.dropped * math.fsum(around(x) for x in range(t))
        return Bits(-self.log2_isolated(k), _bits(exposed * self.n), _bits(failed))


def _bits(probability: float) -> float:
    return math.inf if probability <= 0 else max(0.0, -math.log2(probability))


def _hypergeometric(total: int, marked: int, drawn: int) -> Callable[[int], float]:
    """Return the probability mass of the number of marked ones among those drawn without replacement."""
    constant = (
        math.lgamma(marked + 1) + math.lgamma(total - marked + 1)
        - math.lgamma(total + 1) + math.lgamma(drawn + 1) + math.lgamma(total - drawn + 1)
    )  # fmt: skip

    def pmf(x: int) -> float:
        if not max(0, drawn - (total - marked)) <= x <= min(drawn, marked):
            return 0.0
        log = constant - math.lgamma(x + 1) - math.lgamma(marked - x + 1) - math.lgamma(drawn - x + 1)
        return math.exp(log - math.lgamma(total - marked - drawn + x + 1))

    return pmf
