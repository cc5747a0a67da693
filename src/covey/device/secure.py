"""A device's part in a secure sum: it masks its update, and checks for itself what it takes part in.

What the server says is only a group's number and an index. Degree, threshold and the smallest group follow from the
verified plan; the sum is bound to the hashes of what this device downloaded, so devices that were told different
things cannot be summed. Secrets live in this object, in memory, and go with it.
"""

from collections.abc import Callable, MutableSet
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from covey.plans.manifest import Manifest
from covey.secagg.session import Mode
from covey.secagg.session import Session as SumSession
from covey.types.errors import StateError
from covey.wire.messages import ACTIVE_STEPS, SECURE_STEPS, Assignment, Joined

if TYPE_CHECKING:
    from covey.secagg import Identity, Party

__all__ = ["SecureReport", "sum_session"]


class SecureReport:
    """One update on its way into a secure sum.

    ``joined`` gives the first message, ``told`` each next one. Every message is made once; a repetition is the
    driver's, with the same bytes. Not thread-safe.
    """

    def __init__(
        self,
        manifest: Manifest,
        assignment: Assignment,
        population: str,
        inputs: list[NDArray[np.int64]],
        *,
        randomness: Callable[[int], bytes],
        used_sums: MutableSet[bytes],
    ) -> None:
        """Hold an update until it can be masked.

        Args:
            manifest: of the verified plan; its terms are secure.
            assignment: what this device was assigned and has checked.
            population: whose device this is.
            inputs: integers for each segment of the plan's layout: :func:`covey.device.update.summed_integers`.
            randomness: returns that many unpredictable bytes: the operating system's.
            used_sums: the sums that this device took part in; this one is added.
        """
        self._manifest, self._assignment, self._population = manifest, assignment, population
        self._randomness, self._used_sums = randomness, used_sums
        self._inputs = inputs
        self._party: Party | None = None
        self._identity: Identity | None = None
        self._now_s = 0

    @property
    def is_active(self) -> bool:
        """Whether the plan assumes a server that may lie, so that this device needs an identity."""
        secure = self._manifest.privacy.secure
        return secure is not None and secure.is_active

    def certified(self, identity: "Identity", now_s: int) -> None:
        """Take the identity under which this device takes part, and the time by its own clock."""
        self._identity, self._now_s = identity, now_s

    def joined(self, message: Joined) -> bytes:
        """Take the place in a group; return the message of ``advertise``.

        Raises:
            SecAggError: numbers under which this device does not take part, or a sum that it was in already.
        """
        from covey.secagg.party import Party  # training is over, and its memory free again

        session = sum_session(self._manifest, self._assignment, self._population, group=message.group)
        self._party = Party(
            session,
            message.index,
            randomness=self._randomness,
            used_sessions=self._used_sums,
            identity=self._identity,
            now_s=self._now_s,
        )
        return self._party.advertise()

    def told(self, step: str, message: bytes) -> tuple[str, bytes]:
        """Take what ``step`` led to; return the next step and its message.

        Raises:
            SecAggError: a check failed; the secrets are gone.
        """
        party, steps = self._party, ACTIVE_STEPS if self.is_active else SECURE_STEPS
        if party is None:
            raise StateError("secure sum", expected="a place in a group", got="none")
        match step:
            case "advertise":
                body = party.share(message)
            case "share":
                body = party.mask(message, self._inputs)
                self._inputs = []  # what left is masked; nothing else is kept
            case "mask" if self.is_active:
                body = party.sign(message)
            case "mask" | "consistency":
                body = party.unmask(message)
            case _:
                raise StateError("secure sum", expected="advertise, share, mask or consistency", got="another step")
        return steps[steps.index(step) + 1], body

    def leave(self) -> None:
        """Drop all secrets and the update."""
        self._inputs, self._identity = [], None
        if self._party is not None:
            self._party.leave()


def sum_session(manifest: Manifest, assignment: Assignment, population: str, *, group: int) -> SumSession:
    """Return the facts of one group's sum, from what this device verified itself.

    Raises:
        SecAggParameterError: the plan's terms are unsafe, or do not fit together.
        LayoutError: sums that could overflow.
    """
    privacy = manifest.privacy
    assert privacy.secure is not None, "a plan in secure mode has its terms"
    return SumSession.plan(
        Mode(privacy.secure.mode),
        manifest.layout(assignment.phase),
        n_max=privacy.secure.group_size,
        min_survivors=privacy.min_cohort,
        adversary=privacy.secure.adversary,
        dropout=privacy.secure.dropout,
        population=population,
        round_id=f"{assignment.public_seed}/{assignment.phase}",
        group=group,
        public_seed=bytes.fromhex(assignment.public_seed),
        plan_hash=bytes.fromhex(assignment.plan.sha256),
        checkpoint_hash=bytes.fromhex(assignment.checkpoint.sha256),
        broadcast_hash=bytes.fromhex(assignment.shared.sha256) if assignment.shared else bytes(32),
        authority=bytes.fromhex(privacy.secure.authority),  # that of the policy: check_assignment compared them
    )
