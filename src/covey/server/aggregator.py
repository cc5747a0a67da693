"""The aggregator: one shard of a cohort. It holds a running sum in memory and nothing else, and dies with it.

An update is checked, folded and forgotten in one call. A body that is truncated, oversized, out of range or not finite
never touches the sum. Secure aggregation takes its place here: masked vectors are folded into the same rings, and the
sum is opened when the shard closes.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from covey.compression.codec import HEADER_CODEC, Codec, codecs_of, part_codec, segment_seed
from covey.plans.evaluation import DIFFERENCE_LIMIT, DIFFERENCE_SCALE
from covey.plans.manifest import COMPARISON, Manifest
from covey.server.messages import (
    AbandonArrived,
    CloseShard,
    Counted,
    DiscardShard,
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
from covey.types.errors import AlreadyCountedError, CoveyError, RoundClosedError, SessionUnknownError, UpdateRangeError
from covey.types.segments import HEADER, Segment, SegmentSum
from covey.wire.framing import decode_update, max_update_bytes
from covey.wire.messages import Abandoned, Reported

__all__ = ["Aggregator", "body_limits", "segment_codecs"]

_REMEMBERED = 10_000
"""How many ended sessions are remembered, so that a late device learns why it is late."""


@dataclass(slots=True)
class _Shard:
    open: set[str]
    total: SegmentSum
    codecs: Mapping[str, Codec]
    limits: Mapping[str, int]
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
        """Take OpenShard, ReportArrived, AbandonArrived, CloseShard or DiscardShard."""
        match message:
            case OpenShard(attempt=attempt, phase=phase, sessions=sessions):
                total = SegmentSum(self._manifest.layout(phase))
                codecs, limits = segment_codecs(self._manifest, phase), body_limits(self._manifest, phase)
                self._shards[attempt] = _Shard(set(sessions), total, codecs, limits)
                self._attempt_of |= dict.fromkeys(sessions, attempt)
                return []
            case ReportArrived():
                return self._report(message)
            case AbandonArrived(ticket=ticket, session=session, reason=reason):
                return self._abandon(ticket, session, reason)
            case CloseShard(attempt=attempt):
                shard = self._end(attempt)
                return [] if shard is None else [Envelope(self._to, ShardClosed(attempt, shard.total))]
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

    def _report(self, message: ReportArrived) -> list[Envelope]:
        to = device_address(message.ticket)
        try:
            attempt, shard = self._open_shard(message.session)
        except CoveyError as error:
            return [Envelope(to, Reply(error))]
        shard.open.discard(message.session)
        try:
            self._fold(attempt, shard, message)
        except CoveyError as error:
            shard.ended[message.session] = RoundClosedError
            return [Envelope(to, Reply(error)), Envelope(self._to, Lost(attempt, error.code))]
        shard.ended[message.session] = AlreadyCountedError
        answer = Reported(counted=True, retry_after_s=0.0)
        return [Envelope(to, Reply(answer)), Envelope(self._to, Counted(attempt, len(message.body)))]

    def _fold(self, attempt: str, shard: _Shard, message: ReportArrived) -> None:
        seed = public_seed(attempt)
        parts = decode_update(message.body, shard.limits)
        values = {}
        for s in shard.total.segments:
            codec = shard.codecs[s.name]
            public = segment_seed(codec, round_seed=seed, session=message.session, segment=s.name)
            values[s.name] = codec.decode(parts[s.name], s.length, public)
        _check_header(values[HEADER], self._manifest, shard.total.segments[0])
        shard.total.fold_reals(values)

    def _abandon(self, ticket: str, session: str, reason: str) -> list[Envelope]:
        answer = Envelope(device_address(ticket), Reply(Abandoned(retry_after_s=0.0)))
        try:
            attempt, shard = self._open_shard(session)
        except CoveyError:
            return [answer]  # it is over either way, and that is what the device wants
        shard.open.discard(session)
        shard.ended[session] = RoundClosedError
        return [answer, Envelope(self._to, Lost(attempt, reason))]

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
            if shard.ended.get(session) is AlreadyCountedError:
                raise AlreadyCountedError("session", expected="one report", got="a second one")
            raise _closed()
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
