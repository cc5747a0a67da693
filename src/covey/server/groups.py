"""How a secure cohort is dealt into groups, and what is kept of each while its sum is made."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from covey.plans.manifest import Manifest
from covey.secagg import Mode, Server, Step
from covey.secagg import Session as SumSession
from covey.types.errors import AlreadyCountedError, CoveyError, RoundClosedError, StateError
from covey.types.segments import SegmentSum
from covey.wire.messages import Assignment, BlobRef

__all__ = ["Group", "Shard", "deal", "late", "sum_session", "unbound"]

T = TypeVar("T")

_NO_BLOB = BlobRef(sha256="00" * 32, num_bytes=0, path="")

_STEPS = {
    "advertise": Step.ADVERTISE,
    "share": Step.SHARE,
    "mask": Step.MASK,
    "consistency": Step.CONSISTENCY,
    "unmask": Step.UNMASK,
}


@dataclass(slots=True)
class Group:
    """Some devices whose sum is opened together.

    Attributes:
        server: the protocol's.
        sessions: of the devices; a device's place is its index.
        deadline_s: when the present step ends.
        told: what the last step led to, by index.
        gone: who said that it leaves.
        awaiting: the tickets of those who wait for the step's end, by index.
        bytes_up: what was received.
    """

    server: Server
    sessions: list[str]
    deadline_s: float
    told: dict[int, bytes] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    awaiting: dict[int, str] = field(default_factory=dict)
    bytes_up: int = 0

    def missing(self) -> bool:
        """Whether somebody who may still answer has not."""
        server = self.server
        return bool((server.expected & frozenset(range(len(self.sessions)))) - server.answered - self.gone)

    def take(self, index: int, step: str, body: bytes | bytearray | memoryview) -> bool:
        """Take a device's message; return whether it belongs to the present step, not to one that is over.

        Raises:
            SecAggError, RoundClosedError, StateError: refused; nothing was kept.
        """
        server, wanted = self.server, self._step(step)
        if server.step is not wanted:
            if server.step > wanted and index in self.told:
                return False  # a repetition that came after the step's end
            if server.step > wanted:
                raise late()
            raise StateError("secure step", expected=server.step.name.lower(), got="a later one")
        fresh = index not in server.answered
        # Already counted: its answer was lost on the way. The first one is in the sum, and this one is not read.
        with contextlib.suppress(AlreadyCountedError):
            # A masked input is read where it lies, in the request's buffer; what is kept longer is copied out of it.
            server.accept(index, cast(bytes, body) if wanted is Step.MASK else bytes(body))
        if fresh:
            self.bytes_up += len(body)
        return True

    def outcome(self, index: int, step: str) -> bytes | None:
        """Return what a step led to for a device; None while the step lasts.

        Raises:
            RoundClosedError: the device is not in the next step, or the step is long over.
            StateError: no such step in this mode.
        """
        wanted = self._step(step)
        if self.server.step is wanted:
            return None
        if self.server.step is self._after(wanted) and index in self.told:
            return self.told[index]
        raise late()

    def _step(self, name: str) -> Step:
        wanted = _STEPS[name]
        if wanted is Step.CONSISTENCY and not self.server.session.is_active:
            raise StateError("secure step", expected="a step of this mode", got=name)
        return wanted

    def _after(self, step: Step) -> Step:
        skipped = step is Step.MASK and not self.server.session.is_active
        return Step.UNMASK if skipped else Step(step + 1)


@dataclass(slots=True)
class Shard:
    """One attempt's share of a cohort. ``ready`` holds the sessions that have trained; a ticket, once they wait."""

    offer: Assignment
    sessions: set[str]
    ready: dict[str, str | None] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    place: dict[str, tuple[Group, int]] = field(default_factory=dict)
    opened: list[SegmentSum] = field(default_factory=list)
    bytes_up: int = 0
    reason: str = ""


def deal(ready: Sequence[T], most: int, least: int) -> list[list[T]]:
    """Deal devices into as few groups of at most ``most`` as there can be, of nearly equal size.

    Where such groups would be smaller than ``least``, and so likely to fail, groups of ``most`` are dealt and the rest
    is left out: 101 devices make one group of 100, not two that cannot be opened.
    """
    num_groups = max(1, math.ceil(len(ready) / most))
    if num_groups > 1 and len(ready) // num_groups < least:
        num_groups -= 1
        ready = ready[: num_groups * most]
    return [list(ready[number::num_groups]) for number in range(num_groups)]


def sum_session(manifest: Manifest, offer: Assignment, population: str, *, group: int) -> SumSession:
    """Return the facts of one group's sum; every device computes the same from what it verified itself."""
    privacy = manifest.privacy
    assert privacy.secure is not None, "a plan in secure mode has its terms"
    terms = privacy.secure
    return SumSession.plan(
        Mode(terms.mode),
        manifest.layout(offer.phase),
        n_max=terms.group_size,
        min_survivors=privacy.min_cohort,
        adversary=terms.adversary,
        dropout=terms.dropout,
        population=population,
        round_id=f"{offer.public_seed}/{offer.phase}",
        group=group,
        public_seed=bytes.fromhex(offer.public_seed),
        plan_hash=bytes.fromhex(offer.plan.sha256),
        checkpoint_hash=bytes.fromhex(offer.checkpoint.sha256),
        broadcast_hash=bytes.fromhex(offer.shared.sha256) if offer.shared else bytes(32),
        authority=bytes.fromhex(terms.authority),
    )


def unbound(phase: int) -> Assignment:
    """Return an assignment of nobody: sizes do not depend on what a sum is bound to."""
    return Assignment(
        session="", round=0, phase=phase, plan=_NO_BLOB, signature="", checkpoint=_NO_BLOB, mode="secure",
        public_seed="00" * 32, report_within_s=0.0,
    )  # fmt: skip


def late() -> CoveyError:
    """Return the error of a message that came too late."""
    return RoundClosedError(
        "secure sum", expected="a message before its step closed", got="a late one", hint="check in again"
    )
