"""What the owner of a device, or of the application on it, accepts: everything else is refused, before training.

Nothing here is taken on the server's word: the owner's key, the population, the smallest cohort and the budgets are
pinned on the device, and the plan's own promises are compared with them.
"""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.compression.checkpoint import download_num_bytes
from covey.device.private import PrivacyFloor, check_privacy
from covey.device.trainer import hyper_values
from covey.plans.manifest import Manifest, PrivacyTerms
from covey.plans.plan import MAX_PLAN_BYTES, Plan
from covey.plans.signing import verify_plan
from covey.types.errors import PlanRefusedError, PlanSignatureError
from covey.types.tensors import packed_num_bytes
from covey.wire.messages import Assignment, BlobRef

__all__ = ["OwnerPolicy", "check_assignment", "check_offer"]


@dataclass(frozen=True, slots=True)
class OwnerPolicy:
    """The owner's terms.

    Attributes:
        owner_key: who may sign plans for this population.
        population: the only population that this device serves.
        accept_plain: whether updates may travel unmasked, so that the server *could* look at one (it stores none).
        min_cohort: the fewest devices whose sum may be opened.
        max_memory_bytes: the largest memory budget of a plan.
        max_time_s: the longest time budget of a plan.
        privacy: the least differential privacy.
        authority: the Ed25519 public key (32 raw bytes) of the enrolment authority. Whoever pins one wants sums that
            hold against a server that lies, and gets no other; without one, plans that need one are refused.
    """

    owner_key: Ed25519PublicKey
    population: str
    accept_plain: bool = False
    min_cohort: int = 100
    max_memory_bytes: int = 1 << 30
    max_time_s: float = 3600.0
    privacy: PrivacyFloor = field(default_factory=PrivacyFloor)
    authority: bytes = b""


def check_offer(policy: OwnerPolicy, assignment: Assignment) -> None:
    """Check what can be checked before anything is downloaded: mode, signature, the plan's size.

    Raises:
        PlanRefusedError: outside what the owner accepted.
        PlanSignatureError: not signed by the owner for this population.
    """
    if assignment.mode not in ("plain", "secure"):
        raise PlanRefusedError("assignment: mode", expected="plain or secure", got=assignment.mode[:20])
    if assignment.mode == "plain" and not policy.accept_plain:
        raise PlanRefusedError(
            "assignment: mode",
            expected="secure aggregation",
            got="plain",
            hint="in plain mode the server could look at one update; the owner may accept that explicitly",
        )
    if assignment.mode == "secure":
        _check_seed(assignment)
    _check_size(assignment.plan, "plan", at_most=MAX_PLAN_BYTES)
    try:
        signature = bytes.fromhex(assignment.signature)
        verify_plan(policy.owner_key, policy.population, assignment.plan.sha256, signature)
    except ValueError as e:
        raise PlanSignatureError("assignment", expected="a hash and a signature in hex", got="something else") from e


def check_assignment(policy: OwnerPolicy, plan: Plan, assignment: Assignment) -> None:
    """Check a verified plan, and what the server wants done with it, against the owner's terms.

    Raises:
        PlanRefusedError: names the term that is not met.
    """
    manifest = plan.manifest
    terms, budget = manifest.privacy, manifest.budget
    if assignment.mode != terms.mode:
        raise PlanRefusedError("assignment: mode", expected=f"{terms.mode}, as the plan says", got=assignment.mode)
    if terms.min_cohort < policy.min_cohort:
        raise PlanRefusedError(
            "plan: privacy.min_cohort",
            expected=f"at least {policy.min_cohort}",
            got=str(terms.min_cohort),
            hint="the device's owner may lower its own minimum; a sum over few devices says more about each",
        )
    if budget.memory_bytes > policy.max_memory_bytes:
        raise PlanRefusedError(
            "plan: budget.memory_bytes", expected=f"at most {policy.max_memory_bytes}", got=str(budget.memory_bytes)
        )
    if not 0 < budget.time_s <= policy.max_time_s:
        raise PlanRefusedError(
            "plan: budget.time_s", expected=f"at most {policy.max_time_s:g}", got=f"{budget.time_s:g}"
        )
    if not 0 <= assignment.phase < len(manifest.phases):
        raise PlanRefusedError(
            "assignment: phase", expected=f"one of the plan's {len(manifest.phases)}", got=str(assignment.phase)
        )
    _check_authority(policy, terms)
    does = "evaluate" if manifest.phases[assignment.phase].graph == "eval" else "train"
    if assignment.kind != does:
        raise PlanRefusedError("assignment: kind", expected=f"{does}, as the plan does", got=assignment.kind[:20])
    hyper_values(manifest, assignment.hyper)
    check_privacy(policy.privacy, manifest)
    _check_blobs(manifest, assignment)


def _check_authority(policy: OwnerPolicy, terms: PrivacyTerms) -> None:
    """Hold the plan's authority against the pinned one: neither side takes part in less than it asked for."""
    named = terms.secure.authority if terms.secure is not None else ""
    if policy.authority and not named:
        raise PlanRefusedError(
            "plan: privacy.secure.mode",
            expected="active, because this device pins an enrolment authority",
            got="another",
            hint="without --authority-key the device trusts the server to follow the protocol",
        )
    if named and not policy.authority:
        raise PlanRefusedError(
            "plan: privacy.secure.authority",
            expected="a plan without one, because this device pins none",
            got="one",
            hint="get the authority's key from the application by a trusted way: --authority and --authority-key",
        )
    if named and bytes.fromhex(named) != policy.authority:
        raise PlanRefusedError("plan: privacy.secure.authority", expected="the pinned authority", got="another")


def _check_seed(assignment: Assignment) -> None:
    """Refuse a seed that cannot be read: a secure sum is bound to it."""
    seed = assignment.public_seed
    if len(seed) != 64 or not set(seed) <= set("0123456789abcdef"):
        raise PlanRefusedError("assignment: public_seed", expected="32 bytes in lower-case hex", got="something else")


def _check_blobs(manifest: Manifest, assignment: Assignment) -> None:
    """Sizes follow from the plan: a server cannot make a device download more than the model needs.

    An evaluation may go without the second model; then it only evaluates the first.
    """
    params = packed_num_bytes(manifest.params)
    shared = packed_num_bytes(manifest.phases[assignment.phase].shared)
    if params + shared > manifest.budget.memory_bytes:
        raise PlanRefusedError(
            "plan: budget.memory_bytes", expected=f"at least the model's {params + shared}", got="less"
        )
    download = download_num_bytes(manifest.download, manifest.params)
    _check_size(assignment.checkpoint, "checkpoint", exactly=download)
    optional = assignment.kind == "evaluate" and assignment.shared is None
    if (assignment.shared is not None) != bool(shared) and not optional:
        raise PlanRefusedError(
            "assignment: shared", expected="a blob" if shared else "none", got="none" if shared else "a blob"
        )
    if assignment.shared is not None:
        _check_size(assignment.shared, "shared", exactly=shared)


def _check_size(ref: BlobRef, what: str, *, at_most: int | None = None, exactly: int | None = None) -> None:
    if exactly is not None and ref.num_bytes != exactly:
        raise PlanRefusedError(f"assignment: {what}", expected=f"{exactly} bytes", got=str(ref.num_bytes))
    if at_most is not None and not 0 < ref.num_bytes <= at_most:
        raise PlanRefusedError(f"assignment: {what}", expected=f"1 to {at_most} bytes", got=str(ref.num_bytes))
    if len(ref.sha256) != 64 or not set(ref.sha256) <= set("0123456789abcdef"):
        raise PlanRefusedError(f"assignment: {what}", expected="a SHA-256 in lower-case hex", got="another name")
