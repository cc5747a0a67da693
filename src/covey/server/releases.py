"""The release desk of a population: which checkpoints stand for release, what became of them, what devices serve.

Sans-I/O but for the storage: the driver tells it of committed rounds and of evaluations, and carries out the evaluation
that :meth:`ReleaseDesk.wanted` asks for. At most one candidate is pending; it survives a restart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from covey.plans.manifest import Manifest
from covey.plans.release import Release, sign_release
from covey.privacy.ledger import admission
from covey.server.promotion import Comparison, Evidence, ReleaseSettings, Verdict, decide
from covey.server.release_key import Signer
from covey.storage.interface import Storage
from covey.types.errors import BudgetExhaustedError, NotFoundError, ReleaseRefusedError
from covey.types.tensors import unpack_tensors
from covey.wire.messages import CandidateSummary, RoundSummary

__all__ = ["ReleaseDesk", "ReleaseHistory", "Wanted"]


class ReleaseHistory(msgspec.Struct, frozen=True, kw_only=True):
    """All releases of a population, and all checkpoints that stood for release: the answer to ``GET .../releases``."""

    releases: tuple[Release, ...]
    candidates: tuple[CandidateSummary, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An evaluation to make: of the candidate's checkpoint beside that of the present release, which has a version."""

    round: int
    checkpoint: str
    reference: str
    version: int


class ReleaseDesk:
    """One population's. Laws: a candidate is decided once; versions move forward by one; training never waits.

    While one candidate is pending no other stands: an evaluation that takes longer than the rounds between two
    candidates would otherwise never end with a release.
    """

    def __init__(
        self,
        population: str,
        plan_of: Callable[[str], tuple[str, Manifest]],
        storage: Storage,
        settings: ReleaseSettings,
        signer: Callable[[float], Signer],
        *,
        metric: str | None = None,
    ) -> None:
        """Take up where the storage stands.

        Args:
            population: whose releases.
            plan_of: returns the SHA-256 of a task's plan, and its manifest.
            storage: keeps candidates and releases.
            settings: what a release needs.
            signer: returns the key and its delegation at a time (seconds since 1970).
            metric: what the evaluation plan compares; None: there is no evaluation plan.
        """
        self.population = population
        self.settings = settings
        self._plan_of = plan_of
        self._storage = storage
        self._store = storage.release_store
        self._signer = signer
        self._metric = metric
        self._num_failed = 0
        self._newest = next(reversed(self._store.releases(population)), None)
        self._pending = next((c for c in self._store.candidates(population) if c.status == "pending"), None)

    @property
    def version(self) -> int:
        """The newest release; 0 before the first."""
        return self._newest.version if self._newest else 0

    def state(self, now_s: float) -> str:
        """Return ``on``, ``off`` (by configuration), or why nothing can be signed; see :mod:`release_key`."""
        return self._signer(now_s).state if self.settings.every else "off"

    def history(self, now_s: float) -> ReleaseHistory:
        """Return every release and every candidate, in order."""
        releases = tuple(self._handed_out(r, now_s) for r in self._store.releases(self.population))
        return ReleaseHistory(releases=releases, candidates=self._store.candidates(self.population))

    def current(self, now_s: float) -> Release:
        """Return the release that devices shall serve, under the newest delegation of its key.

        Raises:
            NotFoundError: there is none yet.
        """
        if self._newest is None:
            raise NotFoundError("release", expected="a first release", got="none yet", hint="come again later")
        return self._handed_out(self._newest, now_s)

    def committed(self, summary: RoundSummary, now_s: float) -> CandidateSummary | None:
        """Take a committed round; return the candidate that it makes, decided or pending, or None."""
        if self._pending is not None or not self._stands(summary) or self._signer(now_s).key is None:
            return None
        made = CandidateSummary(
            round=summary.round, task=summary.task, checkpoint=summary.checkpoint, cohort=summary.reported
        )
        self._store.propose(self.population, made)
        self._pending, self._num_failed = made, 0
        return self._try(made, summary.metrics, None, now_s) or made

    def resumed(self, now_s: float) -> CandidateSummary | None:
        """After a restart: decide a candidate that no evaluation is needed for."""
        return self._try(self._pending, {}, None, now_s) if self._pending else None

    def wanted(self, now_s: float) -> Wanted | None:
        """Return the evaluation that the pending candidate waits for; None where nothing could be signed after it."""
        return None if self._signer(now_s).key is None else self._waited_for()

    def _waited_for(self) -> Wanted | None:
        if self._pending is None or self._newest is None:
            return None
        newest = self._newest
        return Wanted(self._pending.round, self._pending.checkpoint, newest.checkpoint, newest.version)

    def evaluated(self, wanted: Wanted, means: Mapping[str, float], now_s: float) -> CandidateSummary | None:
        """Take the metrics of a committed evaluation round; return the verdict, or None if it came too late."""
        if self._pending is None or wanted != self._waited_for():
            return None
        assert self._metric is not None, "an evaluation was made by a plan"
        return self._try(self._pending, {}, Comparison.of(self._metric, means), now_s)

    def evaluation_failed(self, wanted: Wanted) -> bool:
        """Take an abandoned evaluation round; return whether there were enough of them, so that no other is made."""
        if self._pending is None or wanted != self._waited_for():
            return False
        self._num_failed += 1
        return self._num_failed >= self.settings.attempts

    def give_up(self, wanted: Wanted, now_s: float) -> CandidateSummary | None:
        """Keep a candidate out because no evaluation of it will be made."""
        if self._pending is None or wanted != self._waited_for():
            return None
        return self._settle(self._pending, Verdict("evaluation_failed"), None, now_s)

    def roll_back(self, version: int, now_s: float) -> Release:
        """Publish an earlier release's checkpoint again, as a new version.

        Raises:
            NotFoundError: no such release, or its checkpoint is not kept any more.
            ReleaseRefusedError: nothing can be signed now, or it is the newest already.
        """
        found = next((r for r in self._store.releases(self.population) if r.version == version), None)
        if found is None:
            raise NotFoundError("release", expected="a version that was released", got=str(version))
        if found.checkpoint == (self._newest and self._newest.checkpoint):
            raise ReleaseRefusedError("release", expected="an earlier checkpoint", got="the one that is served")
        self._storage.blob(found.checkpoint)  # is still there, and whole
        made = self._sign(found.plan, found.checkpoint, found.num_bytes, now_s, rollback_of=version)
        self._store.publish(made)
        self._newest = made
        return made

    def _handed_out(self, release: Release, now_s: float) -> Release:
        """Return a release under the newest delegation of its key, with its plan's signature if it was stored bare."""
        word = self._signer(now_s).delegation
        if word is None or word.release_key != release.delegation.release_key:
            word = release.delegation
        signature = release.plan_signature or self._plan_signature(release.plan)
        return msgspec.structs.replace(release, delegation=word, plan_signature=signature)

    def _plan_signature(self, plan: str) -> str:
        """Return the owner's signature over a plan: whatever is released was trained by a task, and none is deleted."""
        tasks = self._storage.tasks(self.population)
        return next((t.signature.lower() for t in tasks if t.plan == plan), "")  # in a release hex has one form

    def _stands(self, summary: RoundSummary) -> bool:
        every = self.settings.every
        return summary.status == "committed" and every > 0 and summary.round % every == 0

    def _try(
        self, candidate: CandidateSummary, metrics: Mapping[str, float], found: Comparison | None, now_s: float
    ) -> CandidateSummary | None:
        """Decide if there is enough to decide by."""
        verdict = decide(self._evidence(candidate, metrics, found), self.settings)
        return None if verdict is None else self._settle(candidate, verdict, found, now_s)

    def _evidence(
        self, candidate: CandidateSummary, metrics: Mapping[str, float], found: Comparison | None
    ) -> Evidence:
        _, manifest = self._plan_of(candidate.task)
        params = unpack_tensors(manifest.params, self._storage.blob(candidate.checkpoint))
        finite = all(np.isfinite(v).all() for v in params.values()) and all(map(np.isfinite, metrics.values()))
        missing = ""
        if manifest.privacy.noise is not None:
            missing = "no_evaluation_under_privacy"
        elif self._metric is None:
            missing = "no_evaluation_plan"
        return Evidence(finite, candidate.cohort, self._within_budget(manifest), self._newest is None, found, missing)

    def _within_budget(self, manifest: Manifest) -> bool:
        """Say whether what was spent is within the plan's budget: a sum was charged before it was opened."""
        noise = manifest.privacy.noise
        if noise is None:
            return True
        try:
            admission((), noise.budget, noise.delta)(self._storage.privacy_spent(self.population))
        except BudgetExhaustedError:
            return False
        return True

    def _settle(
        self, candidate: CandidateSummary, verdict: Verdict, found: Comparison | None, now_s: float
    ) -> CandidateSummary | None:
        """Store a verdict, with the release that it makes; None where nothing can be signed: it stays pending."""
        release = None
        if verdict.promoted:
            if self._signer(now_s).key is None:
                return None
            num_bytes = len(self._storage.blob(candidate.checkpoint))
            plan, _ = self._plan_of(candidate.task)
            release = self._sign(plan, candidate.checkpoint, num_bytes, now_s)
        decided = msgspec.structs.replace(
            candidate,
            status="promoted" if verdict.promoted else "refused",
            reason=verdict.reason,
            version=release.version if release else 0,
            compared=found.num_devices if found else 0,
            difference=_shown(found.mean) if found else 0.0,
            limit=_shown(verdict.limit),
            decided_at=int(now_s),
        )
        self._store.settle(self.population, decided, release)
        self._pending, self._num_failed = None, 0
        self._newest = release or self._newest
        return decided

    def _sign(self, plan: str, checkpoint: str, num_bytes: int, now_s: float, rollback_of: int = 0) -> Release:
        signer = self._signer(now_s)
        if signer.key is None or signer.delegation is None:
            raise ReleaseRefusedError(
                "release", expected="a release key with a delegation", got=signer.state, hint="docs/releases.md"
            )
        return sign_release(
            signer.key,
            signer.delegation,
            version=self.version + 1,
            plan=plan,
            plan_signature=self._plan_signature(plan),
            checkpoint=checkpoint,
            num_bytes=num_bytes,
            created_at=int(now_s),
            rollback_of=rollback_of,
        )


def _shown(value: float) -> float:
    """Return a number that JSON can hold: an infinite limit says that there was no evidence, as 0 devices do."""
    return float(value) if np.isfinite(value) else 0.0
