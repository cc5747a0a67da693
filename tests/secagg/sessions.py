"""Sessions for tests: deterministic randomness, small sessions, and a run that stops wherever a test wants."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.secagg import EnrolmentAuthority, Mode, Party, Server, Session, Step
from covey.types.segments import Segment

NOW_S = 1_800_000_000
HBC, ACTIVE = Mode.HONEST_BUT_CURIOUS, Mode.ACTIVE
BOTH = pytest.mark.parametrize("mode", list(Mode))


class Seeded:
    """Bytes of a hash in counter mode: repeatable, for tests only."""

    def __init__(self, seed: object = 0) -> None:
        self._seed = repr(seed).encode()
        self._count = 0

    def __call__(self, num_bytes: int) -> bytes:
        out = b""
        while len(out) < num_bytes:
            out += hashlib.sha256(self._seed + self._count.to_bytes(8, "little")).digest()
            self._count += 1
        return out[:num_bytes]


AUTHORITY = EnrolmentAuthority(Ed25519PrivateKey.from_private_bytes(b"authority of the tests, 32 bytes"), "tests")

SEGMENTS = (Segment("model", 37, 100, 60, ring_bits=14), Segment("header", 3, 1 << 40, 60, ring_bits=64))


def session(mode: Mode = Mode.HONEST_BUT_CURIOUS, n_max: int = 6, **changes: object) -> Session:
    active = mode is Mode.ACTIVE
    values: dict[str, object] = {
        "num_neighbours": n_max - 1,
        "threshold": (n_max + 1) // 2 + 1,
        "min_survivors": min(n_max, max(3, (n_max + 1) // 2 + 1)),
        "segments": SEGMENTS,
        "population": "tests",
        "round_id": "1",
        "authority": AUTHORITY.public_key if active else b"",
    }
    return Session(mode, n_max=n_max, **{**values, **changes})


def identity(seed: object, authority: EnrolmentAuthority = AUTHORITY, expires_at: int = NOW_S + 60):
    return authority.enrol(Ed25519PrivateKey.from_private_bytes(Seeded(("identity", seed))(32)), expires_at)


def party(s: Session, index: int, seed: object = 0, **changes: object) -> Party:
    values: dict[str, object] = {
        "randomness": Seeded((seed, index)),
        "used_sessions": set(),
        "identity": identity((seed, index)) if s.is_active else None,
        "now_s": NOW_S,
    }
    return Party(s, index, **{**values, **changes})


def inputs(s: Session, index: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, index])
    return [rng.integers(-x.bound if x.signed else 0, x.bound + 1, x.length, dtype=np.int64) for x in s.segments[:-1]]


@dataclass
class Run:
    """A session in one process that a test steps through; ``on_message`` may change or drop what a party sends."""

    session: Session
    seed: object = 0
    gone: dict[int, Step] = field(default_factory=dict)
    on_message: Callable[[Step, int, bytes], bytes | None] = lambda step, index, message: message

    def __post_init__(self) -> None:
        self.server = Server(self.session, used_sessions=set())
        self.parties = {i: party(self.session, i, self.seed) for i in range(self.session.n_max)}
        self.inputs = {i: inputs(self.session, i) for i in self.parties}
        self.told: dict[int, bytes] = dict.fromkeys(self.parties, b"")
        self.sent: dict[tuple[Step, int], bytes] = {}
        self.received: dict[tuple[Step, int], bytes] = {}

    def answer(self, index: int, message: bytes | None = None) -> bytes:
        who, told = self.parties[index], self.told[index] if message is None else message
        match self.server.step:
            case Step.ADVERTISE:
                return who.advertise()
            case Step.SHARE:
                return who.share(told)
            case Step.MASK:
                return who.mask(told, self.inputs[index])
            case Step.CONSISTENCY:
                return who.sign(told)
            case _:
                return who.unmask(told)

    def collect(self) -> None:
        """Let all parties that are still there answer the present step."""
        step = self.server.step
        for index in self.told:
            if index in self.gone and step >= self.gone[index]:
                continue
            self.received[step, index] = self.told[index]
            message = self.on_message(step, index, self.answer(index))
            if message is not None:
                self.sent[step, index] = message
                self.server.accept(index, message)

    def until(self, step: Step) -> "Run":
        """Run whole steps until the server waits for ``step``'s messages."""
        while self.server.step < step:
            self.collect()
            self.told = self.server.close_step()
        return self

    def open(self):
        return self.until(Step.OPEN).server.open()

    def expected_sums(self, survivors) -> list[np.ndarray]:
        return [sum(v) for v in zip(*(self.inputs[i] for i in survivors), strict=True)]


def pieces(raw: bytes, size: int) -> list[bytes]:
    """Cut what travels in one piece."""
    assert len(raw) % size == 0
    return [raw[i : i + size] for i in range(0, len(raw), size)]


def at(step: Step, mode: Mode = Mode.HONEST_BUT_CURIOUS, **changes: object) -> Run:
    """A session that waits for ``step``'s messages."""
    return Run(session(mode, **changes)).until(step)


def is_over(who: Party) -> bool:
    """Whether a party has dropped all that it knew."""
    return "the end" in repr(who)
