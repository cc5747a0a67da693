"""The aggregator: one shard of a cohort. It holds a running sum in memory and nothing else, and dies with it.

An update is checked, folded and forgotten in one call. A body that is truncated, oversized, out of range or not finite
never touches the sum. Secure aggregation takes its place here: masked vectors are folded into the same rings, and the
sum is opened when the shard closes.

In asynchronous aggregation sessions outlive a sum: an update is folded into the one at hand, weighed by the number of
sums that were handed over since its session began (:mod:`covey.algorithms.fedbuff`). In a round that number is 0.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from covey.algorithms.fedbuff import weighed
from covey.compression.codec import HEADER_CODEC, Codec, codecs_of, part_codec, segment_seed
from covey.plans.evaluation import DIFFERENCE_LIMIT, DIFFERENCE_SCALE
from covey.plans.manifest import COMPARISON, Manifest
from covey.server.messages import (
    AbandonArrived,
    CloseShard,
    Counted,
    DiscardShard,
    EndSessions,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ReportArrived,
    ShardClosed,
    coordinator_address,
    device_address,
    public_seed,
)
from covey.types.errors import (
    AlreadyCountedError,
    CoveyError,
    RoundClosedError,
    SessionUnknownError,
    TooStaleError,
    UpdateRangeError,
)
from covey.types.segments import HEADER, Segment, SegmentSum
from covey.wire.framing import decode_update, max_update_bytes
from covey.wire.messages import Abandoned, Reported

__all__ = ["Aggregator", "body_limits", "segment_codecs"]

_TIME_IS_UP = "time_is_up"
_REMEMBERED = 10_000
"""How many ended sessions are remembered, so that a late device learns why it is late."""


@dataclass(frozen=True, slots=True)
class _Began:
    """With which round a session began, and that round's public seed."""

    number: int
    public_seed: str


@dataclass(slots=True)
class _Shard:
    number: int
    max_staleness: int
    total: SegmentSum
    codecs: Mapping[str, Codec]
    limits: Mapping[str, int]
    open: dict[str, _Began] = field(default_factory=dict)
    ended: dict[str, type[CoveyError]] = field(default_factory=dict)


def body_limits(manifest: Manifest, phase: int) -> dict[str, int]:
    """Return the parts of an update's body, in order, and the most bytes of each."""
    codecs = segment_codecs(manifest, phase)
    return {s.name: codecs[s.name].max_bytes(s.length) for s in manifest.layout(phase)}


def segment_codecs(manifest: Manifest, phase: int) -> dict[str, Codec]:
    """Return the codec of every part of an update's body.

    Raises:
        CompressionSpecError, MissingExtraError: see :func:`covey.compression.codec.codec_for`.
    """
    noised = manifest.privacy.noise is not None
    codecs = codecs_of(manifest.phases[phase].segments, manifest.privacy)
    own = {name: part_codec(codec, noised=noised) for name, codec in codecs.items()}
    return {s.name: own.get(s.name, HEADER_CODEC) for s in manifest.layout(phase)}


class Aggregator:
    """One shard's role. Laws: a session is folded at most once; a refused body changes no bit of the sum."""

    def __init__(self, population: str, manifest: Manifest) -> None:
        """Begin without a round.

        Args:
            population: whose coordinator is told.
            manifest: of the plan whose updates are folded.
        """
        self._to = coordinator_address(population)
        self._manifest = manifest
        self._shards: dict[str, _Shard] = {}
        self._attempt_of: dict[str, str] = {}
        self._late: deque[str] = deque(maxlen=_REMEMBERED)

    @property
    def max_body_bytes(self) -> int:
        """The largest body that any phase of the plan allows."""
        phases = range(len(self._manifest.phases))
        return max(max_update_bytes(body_limits(self._manifest, p)) for p in phases)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take OpenShard, ReportArrived, AbandonArrived, EndSessions, CloseShard or DiscardShard."""
        match message:
            case OpenShard():
                return self._open(message)
            case ReportArrived():
                return self._report(message)
            case AbandonArrived(ticket=ticket, session=session, reason=reason):
                return self._abandon(ticket, session, reason)
            case EndSessions(attempt=attempt, sessions=sessions):
                return self._lose(attempt, sessions, RoundClosedError, _TIME_IS_UP)
            case CloseShard(attempt=attempt, following=following):
                return self._close(attempt, following)
            case DiscardShard(attempt=attempt):
                if (shard := self._end(attempt)) is not None:
                    shard.total.clear()
                return []
        raise AssertionError(f"the aggregator does not take {type(message).__name__}")

    def next_deadline_s(self) -> float | None:
        """Return None: the coordinator keeps the time."""
        return None

    def tick(self, now_s: float) -> list[Envelope]:
        """Do nothing."""
        return []

    def _open(self, message: OpenShard) -> list[Envelope]:
        attempt, offer = message.attempt, message.offer
        if attempt not in self._shards:
            number = message.number or (0 if offer is None else offer.round)
            manifest, phase = self._manifest, message.phase
            total, codecs = SegmentSum(manifest.layout(phase)), segment_codecs(manifest, phase)
            self._shards[attempt] = _Shard(number, message.max_staleness, total, codecs, body_limits(manifest, phase))
        shard = self._shards[attempt]
        began = _Began(shard.number, public_seed(attempt)) if offer is None else _Began(offer.round, offer.public_seed)
        shard.open |= dict.fromkeys(message.sessions, began)
        self._attempt_of |= dict.fromkeys(message.sessions, attempt)
        return []

    def _report(self, message: ReportArrived) -> list[Envelope]:
        to = device_address(message.ticket)
        try:
            attempt, shard = self._open_shard(message.session)
        except CoveyError as error:
            return [Envelope(to, Reply(error))]
        began = shard.open.pop(message.session)
        staleness = shard.number - began.number
        try:
            self._fold(shard, message, began.public_seed, staleness)
        except CoveyError as error:
            shard.ended[message.session] = RoundClosedError
            return [Envelope(to, Reply(error)), Envelope(self._to, Lost(attempt, error.code))]
        shard.ended[message.session] = AlreadyCountedError
        answer = Reported(counted=True, retry_after_s=0.0)
        told = Counted(attempt, len(message.body), shard.number, staleness)
        return [Envelope(to, Reply(answer, shard.number)), Envelope(self._to, told)]

    def _fold(self, shard: _Shard, message: ReportArrived, seed: str, staleness: int) -> None:
        parts = decode_update(message.body, shard.limits)
        values = {}
        for s in shard.total.segments:
            codec = shard.codecs[s.name]
            public = segment_seed(codec, round_seed=seed, session=message.session, segment=s.name)
            values[s.name] = codec.decode(parts[s.name], s.length, public)
        _check_header(values[HEADER], self._manifest, shard.total.segments[0])
        shard.total.fold_reals(weighed(values, staleness))

    def _abandon(self, ticket: str, session: str, reason: str) -> list[Envelope]:
        answer = Envelope(device_address(ticket), Reply(Abandoned(retry_after_s=0.0)))
        try:
            attempt, _ = self._open_shard(session)
        except CoveyError:
            return [answer]  # it is over either way, and that is what the device wants
        return [answer, *self._lose(attempt, (session,), RoundClosedError, reason)]

    def _lose(self, attempt: str, sessions: Iterable[str], because: type[CoveyError], reason: str) -> list[Envelope]:
        """End sessions without an update; who is not open any more is left alone."""
        shard = self._shards.get(attempt)
        gone = [s for s in sessions if shard is not None and shard.open.pop(s, None) is not None]
        if shard is not None:
            shard.ended |= dict.fromkeys(gone, because)
        return [Envelope(self._to, Lost(attempt, reason)) for _ in gone]

    def _close(self, attempt: str, following: int) -> list[Envelope]:
        if not following:
            shard = self._end(attempt)
            return [] if shard is None else [Envelope(self._to, ShardClosed(attempt, shard.total))]
        shard = self._shards[attempt]
        total, shard.total, shard.number = shard.total, SegmentSum(shard.total.segments), following
        oldest = following - shard.max_staleness
        stale = [s for s, began in shard.open.items() if began.number < oldest]
        lost = self._lose(attempt, stale, TooStaleError, TooStaleError.code)
        for session in list(shard.ended)[:-_REMEMBERED]:  # who sends again does so soon
            del shard.ended[session], self._attempt_of[session]
        return [Envelope(self._to, ShardClosed(attempt, total)), *lost]

    def _open_shard(self, session: str) -> tuple[str, _Shard]:
        attempt = self._attempt_of.get(session)
        if attempt is None:
            if session in self._late:
                raise _closed()
            raise SessionUnknownError(
                "session", expected="an open session", got="an unknown one", hint="check in again"
            )
        shard = self._shards[attempt]
        if session not in shard.open:
            ended = shard.ended.get(session)
            if ended is AlreadyCountedError:
                raise AlreadyCountedError("session", expected="one report", got="a second one")
            raise _too_stale(shard.max_staleness) if ended is TooStaleError else _closed()
        return attempt, shard

    def _end(self, attempt: str) -> _Shard | None:
        shard = self._shards.pop(attempt, None)
        if shard is not None:
            for session in (*shard.open, *shard.ended):
                del self._attempt_of[session]
                self._late.append(session)
        return shard


def _closed() -> RoundClosedError:
    return RoundClosedError(
        "round", expected="a report before the round closed", got="a late one", hint="check in again"
    )


def _too_stale(bound: int) -> TooStaleError:
    return TooStaleError(
        "update", expected=f"one that began at most {bound} versions of the model ago", got="an older one",
        hint="check in again",
    )  # fmt: skip


def _check_header(header: Any, manifest: Manifest, segment: Segment) -> None:
    """Refuse a counter other than 1 and a weight outside its cap: both would bend the mean unseen.

    So would a weight so small that it rounds to nothing beside a model part that does not.
    """
    if header.shape != (segment.length,):
        return  # the fold refuses it with a better message
    least = 2.0**-segment.fraction_bits
    if header[0] != 1.0 or not least <= header[1] <= manifest.privacy.max_weight:
        raise UpdateRangeError(
            "header",
            expected=f"a counter of 1 and a weight in [{least:g}, {manifest.privacy.max_weight}]",
            got="others",
        )
    if manifest.metrics[-len(COMPARISON) :] == COMPARISON:
        compared, difference, squared = (float(v) for v in header[-len(COMPARISON) :])
        most = DIFFERENCE_LIMIT * DIFFERENCE_SCALE
        if compared not in (0.0, 1.0) or abs(difference) > most or not 0.0 <= squared <= most**2:
            raise UpdateRangeError("header", expected="a comparison within its limits", got="another")
