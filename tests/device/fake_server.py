"""A server in memory: it speaks the protocol, folds updates as the real one does, and fails on request."""

from collections.abc import Callable, Iterator

from covey.compression.codec import HEADER_CODEC, codec_named, segment_seed
from covey.types.errors import (
    AlreadyCountedError,
    CoveyError,
    NotFoundError,
    SessionUnknownError,
    TransportError,
    UnauthorizedError,
)
from covey.types.segments import HEADER, SegmentSum
from covey.wire.framing import decode_update
from covey.wire.messages import Abandoned, ComeBack, Enrolled, Reported

from . import world


class FakeServer:
    """Hands out one assignment per check-in, ``s1``, ``s2``, ...; ``failures`` maps a call to errors still to raise."""

    def __init__(self, **assigned):
        self.blobs = {world.ref(d, "x").sha256: d for d in (world.plan_bytes(), world.checkpoint())}
        self.assigned = assigned
        self.manifest = world.plan().manifest
        self.total = SegmentSum(self.manifest.layout(0))
        self.failures: dict[str, list[CoveyError]] = {}
        self.calls: list[str] = []
        self.bodies: dict[str, list[bytes]] = {}
        self.abandoned: list[tuple[str, str]] = []
        self.answers: list[ComeBack] = []
        self.on_call: Callable[[str], None] = lambda call: None
        self.counted: set[str] = set()
        self.credential = "c1"
        self.num_sessions = 0
        self.aborted = False

    def _called(self, call, credential=None):
        self.calls.append(call)
        self.on_call(call)
        if self.failures.get(call):
            raise self.failures[call].pop(0)
        if credential is not None and credential != self.credential:
            raise UnauthorizedError("credential", expected="a valid one", got="another")
        if self.aborted and call != "abandon":
            raise TransportError("server", expected="an open connection", got="a stopped one")

    def enroll(self, message):
        self._called("enroll")
        assert message.population == world.POPULATION
        return Enrolled(credential=self.credential, expires_in_s=3600)

    def check_in(self, message, credential):
        self._called("check_in", credential)
        if self.answers:
            return self.answers.pop(0)
        self.num_sessions += 1
        return world.assignment(**{"session": f"s{self.num_sessions}", "round": self.num_sessions, **self.assigned})

    def fetch(self, ref, credential, start=0) -> Iterator[bytes]:
        self._called("fetch", credential)
        if ref.sha256 not in self.blobs:
            raise NotFoundError("blob", expected="a known one", got="another")
        data = self.blobs[ref.sha256][start:]
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    def report(self, session, body, credential):
        self.bodies.setdefault(session, []).append(body)
        self._called("report", credential)
        self.fold(session, body)
        return Reported(counted=True, retry_after_s=0.0)

    def fold(self, session, body):
        if session in self.counted:
            raise AlreadyCountedError("session", expected="one report", got="a second")
        if session != f"s{self.num_sessions}":
            raise SessionUnknownError("session", expected="an open one", got="another")
        segments = {s.name: s.length for s in self.total.segments}
        codecs = {HEADER: HEADER_CODEC, **{s.name: codec_named(s.codec) for s in self.manifest.phases[0].segments}}
        parts = decode_update(body, {k: codecs[k].max_bytes(n) for k, n in segments.items()})
        round_seed = self.assigned.get("public_seed", "")
        seeds = {k: segment_seed(c, round_seed=round_seed, session=session, segment=k) for k, c in codecs.items()}
        self.total.fold_reals({k: codecs[k].decode(v, segments[k], seeds[k]) for k, v in parts.items()})
        self.counted.add(session)

    def abandon(self, session, message, credential):
        self._called("abandon")
        self.abandoned.append((session, message.reason))
        return Abandoned(retry_after_s=0.0)

    def abort(self):
        self.aborted = True

    def close(self):
        pass
