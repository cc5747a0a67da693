"""What all parties and the server of one secure sum agree on, and its hash: the session id.

A party builds its own :class:`Session` from the plan that it verified and from what it downloaded; the server's is
never taken over. The id enters every key derivation, every sealed share and every signature, so parties that were told
different things (another checkpoint, another threshold, another layout) cannot be summed: their masks do not cancel
and their shares do not open.
"""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from covey.secagg.keys import SEALED_BYTES
from covey.secagg.packing import packed_bytes
from covey.secagg.parameters import MAX_GROUP_ACTIVE, MAX_PARTIES, active_quorum, find_parameters
from covey.types.errors import LayoutError, SecAggParameterError
from covey.types.segments import Segment

__all__ = ["COUNTER", "VERSION", "Mode", "Session"]

VERSION = 1
MAX_SEGMENTS = 64
MAX_PACKED_BYTES = 1 << 31

COUNTER = "secagg/counter"
"""Name of the segment that every session adds: a constant 1, whose sum must be the number of survivors."""


class Mode(enum.Enum):
    """What is assumed of the server. Chosen explicitly; there is no default."""

    HONEST_BUT_CURIOUS = "honest-but-curious"
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Session:
    """The public facts of one secure sum.

    Attributes:
        mode: what is assumed of the server.
        population: whose devices take part.
        round_id: of the round, unique in the population for ever.
        group: of the cohort, where it is split; every group's sum is opened by itself.
        n_max: the most parties that may be selected for the group.
        num_neighbours: ``k``: with how many others a party shares keys; ``n_max - 1`` for a complete graph, else even.
        threshold: ``t``: the shares that open a secret.
        min_survivors: the anonymity set: the fewest inputs that may be summed. Not to be confused with ``t``.
        num_adversaries: ``c``: how many of ``n_max`` may collude with the server; at least 1.
        segments: what is summed. The counter is added by itself.
        public_seed: 32 bytes: the seed of the public choices of the round (rotation, subsampling).
        plan_hash, checkpoint_hash, broadcast_hash: SHA-256 of what the party executes and starts from; zeros where
            there is none.
        authority: the pinned enrolment authority's Ed25519 public key (32 bytes); empty unless the server is active.

    Raises:
        SecAggParameterError: numbers that are unsafe or do not fit together.
        LayoutError: segments that could wrap or that are too large.
    """

    mode: Mode
    population: str
    round_id: str
    n_max: int
    num_neighbours: int
    threshold: int
    min_survivors: int
    segments: tuple[Segment, ...]
    group: int = 0
    num_adversaries: int = 1
    public_seed: bytes = bytes(32)
    plan_hash: bytes = bytes(32)
    checkpoint_hash: bytes = bytes(32)
    broadcast_hash: bytes = bytes(32)
    authority: bytes = b""
    id: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_segments()
        object.__setattr__(self, "segments", (*self.segments, Segment(COUNTER, 1, 1, self.n_max, signed=False)))
        object.__setattr__(self, "id", self._hash())

    @classmethod
    def plan(
        cls,
        mode: Mode,
        segments: Sequence[Segment],
        *,
        n_max: int,
        min_survivors: int,
        adversary: float,
        dropout: float,
        population: str,
        round_id: str,
        group: int = 0,
        public_seed: bytes = bytes(32),
        plan_hash: bytes = bytes(32),
        checkpoint_hash: bytes = bytes(32),
        broadcast_hash: bytes = bytes(32),
        authority: bytes = b"",
    ) -> "Session":
        """Return a session with the degree and threshold that the parameter finder gives.

        Both sides call it with the numbers that the plan pins, so neither takes ``k`` or ``t`` from the other.

        ``adversary`` is the share of parties that may collude with the server, ``dropout`` the share that may vanish
        between advertising keys and unmasking; all others are attributes of :class:`Session`.

        Raises:
            SecAggParameterError: no safe numbers for that size, adversary and dropout.
        """
        found = find_parameters(n_max, adversary, dropout, active=mode is Mode.ACTIVE)
        if found.num_groups > 1:
            raise SecAggParameterError(
                "group", expected=f"at most {found.group_size} parties in this mode", got=str(n_max),
                hint=f"split the cohort into {found.num_groups} groups",
            )  # fmt: skip
        return cls(
            mode, population, round_id, n_max, found.k_used, found.t_used, min_survivors, tuple(segments), group,
            found.num_adversaries, public_seed, plan_hash, checkpoint_hash, broadcast_hash, authority,
        )  # fmt: skip

    @property
    def is_active(self) -> bool:
        """Whether the server may deviate from the protocol."""
        return self.mode is Mode.ACTIVE

    @property
    def quorum(self) -> int:
        """The fewest parties with which any step may go on: enough shares and enough inputs."""
        return max(self.threshold, self.min_survivors)

    @property
    def packed_bytes(self) -> int:
        """The length of a masked input's body."""
        return sum(packed_bytes(s.length, s.ring_bits) for s in self.segments)

    @property
    def entry_bytes(self) -> int:
        """The length of what a party advertises: two public keys, in active mode also its identity and signature."""
        return 64 + (32 + 8 + 64 + 64 if self.is_active else 0)

    @property
    def max_message_bytes(self) -> int:
        """The longest message of any step in either direction, so that a transport need not read more."""
        shares = (self.num_neighbours + 1) * SEALED_BYTES
        return 64 + max(self.packed_bytes, shares + -(-self.n_max // 8), 2 + self.n_max * (2 + self.entry_bytes))

    def _check_numbers(self) -> None:
        limit = MAX_GROUP_ACTIVE if self.is_active else MAX_PARTIES
        complete = self.num_neighbours == self.n_max - 1
        rules = [
            (3 <= self.n_max <= limit, f"n_max of 3 to {limit}", self.n_max),
            (1 <= self.num_adversaries < self.n_max, "at least 1 adversary, fewer than n_max", self.num_adversaries),
            (
                complete or (2 <= self.num_neighbours < self.n_max and self.num_neighbours % 2 == 0),
                "an even number of neighbours below n_max, or n_max - 1",
                self.num_neighbours,
            ),
            (2 <= self.threshold <= self.num_neighbours + 1, "2 <= t <= neighbours + 1", self.threshold),
            (
                not complete or self.threshold > self.num_adversaries,
                f"t above the {self.num_adversaries} adversaries",
                self.threshold,
            ),
            # the adversaries know their own inputs: what is left must still hide one honest party among others
            (
                self.num_adversaries + 2 <= self.min_survivors <= self.n_max,
                f"min_survivors of {self.num_adversaries + 2} (adversaries + 2) to n_max",
                self.min_survivors,
            ),
            (0 <= self.group < 1 << 32, "a group from 0 to 2**32 - 1", self.group),
            (len(self.authority) == (32 if self.is_active else 0), _AUTHORITY_RULE, f"{len(self.authority)} bytes"),
        ]
        if self.is_active:
            quorum = active_quorum(self.n_max, self.num_adversaries)
            rules += [
                (complete, "a complete graph against an active server", self.num_neighbours),
                (self.threshold >= quorum, f"t >= {quorum} against an active server", self.threshold),
            ]
        for holds, expected, got in rules:
            if not holds:
                raise SecAggParameterError("session", expected=expected, got=str(got))
        hashes = (self.public_seed, self.plan_hash, self.checkpoint_hash, self.broadcast_hash)
        if any(len(h) != 32 for h in hashes):
            raise SecAggParameterError("session", expected="seed and hashes of 32 bytes", got="another length")

    def _check_segments(self) -> None:
        names = [s.name for s in self.segments]
        if not 1 <= len(names) <= MAX_SEGMENTS or len(set(names)) != len(names) or COUNTER in names:
            raise LayoutError(
                "session", expected=f"1 to {MAX_SEGMENTS} segments with names of their own", got=", ".join(names)
            )
        for s in self.segments:
            if s.n_max < self.n_max:
                raise LayoutError(f"segment {s.name!r}", expected=f"n_max of at least {self.n_max}", got=str(s.n_max))
        if self.packed_bytes > MAX_PACKED_BYTES:
            raise LayoutError("session", expected=f"at most {MAX_PACKED_BYTES} bytes", got=str(self.packed_bytes))

    def _hash(self) -> bytes:
        digest = hashlib.sha256(b"covey secagg session")
        numbers = (VERSION, self.group, self.n_max, self.num_neighbours, self.threshold, self.min_survivors)
        for part in (
            self.mode.value.encode(), self.population.encode(), self.round_id.encode(),
            *(n.to_bytes(8, "little") for n in (*numbers, self.num_adversaries)),
            self.public_seed, self.plan_hash, self.checkpoint_hash, self.broadcast_hash, self.authority,
        ):  # fmt: skip
            digest.update(len(part).to_bytes(8, "little") + part)
        for s in self.segments:
            name = s.name.encode()
            digest.update(len(name).to_bytes(8, "little") + name)
            for number in (s.length, s.ring_bits, s.bound, s.n_max, int(s.signed), s.fraction_bits):
                digest.update(number.to_bytes(8, "little"))
        return digest.digest()


_AUTHORITY_RULE = "the enrolment authority's 32-byte key in active mode, and only there"
