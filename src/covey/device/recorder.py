"""Keeps the device's ledger: an entry before anything leaves, and one when a session ends, however it ends.

A device that was killed between ``sending`` and the server's answer cannot know whether it was counted. Its session is
gone, nothing is sent again, and what was said to be sent counts against the limits on taking part.
"""

import msgspec

from covey.device.effects import Counted, GaveUp, Outcome, Waiting
from covey.device.ledger import Ledger, LedgerEntry
from covey.plans.manifest import PERSONAL, Manifest
from covey.types.clock import Clock
from covey.types.errors import ParticipationError, PlanRefusedError, PlanSignatureError, PrivacyError
from covey.types.tensors import sha256_hex
from covey.wire.messages import Assignment

__all__ = ["INTERRUPTED", "Recorder"]

INTERRUPTED = "interrupted"
"""The reason of a session that a killed process, or a power cut, left open."""

_OPEN = ("session_started", "sending")
_REFUSALS = (PlanRefusedError, PlanSignatureError, PrivacyError, ParticipationError)


class Recorder:
    """Writes about the sessions of one population. One thread at a time."""

    def __init__(self, ledger: Ledger, population: str, clock: Clock) -> None:
        """Close what a killed process left open, and be ready for the next session.

        Raises:
            StorageError, StorageFullError: the ledger cannot be read and written.
        """
        self._ledger, self._population, self._clock = ledger, population, clock
        self._facts = LedgerEntry(at_s=0.0, kind="session_started", population=population)
        self._started = False
        self._sent = ""
        if (left_open := self._last_entry()) is not None and left_open.kind in _OPEN:
            self._append(msgspec.structs.replace(left_open, kind="lost", reason=INTERRUPTED))

    def assigned(self, assignment: Assignment) -> None:
        """Take up a session; nothing is written yet."""
        self._started, self._sent = False, ""
        self._facts = LedgerEntry(
            at_s=0.0,
            kind="session_started",
            population=self._population,
            task=assignment.task,
            session=assignment.session,
            round=assignment.round,
            plan=assignment.plan.sha256,
            mode=assignment.mode,
        )

    def started(self, manifest: Manifest) -> None:
        """Write, once, that a session with this plan begins.

        Raises:
            ParticipationError: the plan's privacy terms do not let this device take part again so soon, or at all.
            StorageError, StorageFullError: it could not be written: then nothing may be sent either.
        """
        if self._started:
            return
        noise = manifest.privacy.noise
        self._facts = msgspec.structs.replace(
            self._facts,
            summary=_summary(manifest),
            min_cohort=manifest.privacy.min_cohort,
            epsilon=noise.budget if noise else None,
            delta=noise.delta if noise else None,
        )
        if noise is not None and noise.max_participation:
            self._check_participation(noise.max_participation, noise.min_separation)
        self._append(self._facts)
        self._started = True

    def sending(self, body: bytes, num_examples: int, bytes_down: int) -> None:
        """Write, once for the same bytes, that they are about to leave.

        Raises:
            StorageError, StorageFullError: it could not be written: then nothing may be sent either.
        """
        digest = sha256_hex(body)
        if digest == self._sent:
            return
        self._facts = msgspec.structs.replace(
            self._facts, num_examples=num_examples, bytes_down=bytes_down, bytes_up=len(body), body_sha256=digest
        )
        self._append(msgspec.structs.replace(self._facts, kind="sending"))
        self._sent = digest

    def ended(self, outcome: Outcome) -> None:
        """Write how the session ended.

        Raises:
            StorageError, StorageFullError: it could not be written.
        """
        match outcome:
            case Waiting():
                return
            case Counted():
                kind, reason = "counted", ""
            case GaveUp(reason=reason, error=error):
                kind = "refused" if isinstance(error, _REFUSALS) else "gave_up"
                reason = str(error) if error is not None else reason
            case _:
                kind, reason = "lost", outcome.error.code
        self._append(msgspec.structs.replace(self._facts, kind=kind, reason=reason))

    def _check_participation(self, most: int, separation: int) -> None:
        """Count what this device sent under the plan. The bytes count from when they were about to leave."""
        sent = {e.round for e in self._ledger.entries() if e.kind == "sending" and self._is_alike(e)}
        number, latest = self._facts.round, max(sent, default=None)
        if latest is not None and number - latest <= separation:
            raise ParticipationError(
                "privacy terms",
                expected=f"more than {separation} rounds since this device took part last",
                got=f"round {number} after round {latest}",
                hint="the plan's promise of privacy counts on the spacing, which the device keeps by its own ledger",
            )
        if len(sent) >= most:
            raise ParticipationError(
                "privacy terms", expected=f"at most {most} rounds with this device", got="one more",
                hint="the plan's promise of privacy allows no more; a new plan begins afresh",
            )  # fmt: skip

    def _is_alike(self, entry: LedgerEntry) -> bool:
        return (entry.population, entry.plan) == (self._population, self._facts.plan)

    def _last_entry(self) -> LedgerEntry | None:
        last = None
        for entry in self._ledger.entries():
            if entry.population == self._population and entry.session:
                last = entry
        return last

    def _append(self, entry: LedgerEntry) -> None:
        self._ledger.append(msgspec.structs.replace(entry, at_s=self._clock.now_s()))


def _summary(manifest: Manifest) -> str:
    """Say in a line what a plan does."""
    passes = " and ".join(
        f"{p.name}: {p.epochs} {'pass' if p.epochs == 1 else 'passes'} in batches of {p.batch_size}"
        for p in manifest.phases
    )
    query, is_personal = manifest.examples.query.collection, any(p.against == PERSONAL for p in manifest.phases)
    return (
        f"{manifest.task}: {manifest.algorithm.name} on {manifest.min_examples} to {manifest.max_examples} examples of "
        f"{query!r} ({passes})" + (", compared with the model tuned on this device" if is_personal else "")
    )
