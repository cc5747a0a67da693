"""The schemas of manifests: which number makes which devices refuse. Unknown fields are ignored, numbers are not."""

from typing import TYPE_CHECKING

from covey.plans.terms import PrivacyTerms

if TYPE_CHECKING:
    from covey.plans.manifest import Phase

__all__ = [
    "ACTIVE_SCHEMA",
    "DOWNLOAD_SCHEMA",
    "EVALUATION_SCHEMA",
    "NOISE_SCHEMA",
    "SCHEMA_VERSION",
    "STATE_SCHEMA",
    "needed_schema",
]

SCHEMA_VERSION = 4
"""The newest schema that this version reads."""
NOISE_SCHEMA = 2
"""The schema of plans with noise. Unknown fields are ignored, so an older device would train such a plan without a
clip: the higher number makes it refuse."""
ACTIVE_SCHEMA = 3
"""The schema of plans against an active server. An older device would take part as if the server were honest."""
EVALUATION_SCHEMA = 3
"""The schema of plans whose phase evaluates."""
STATE_SCHEMA = 3
"""The schema of plans whose devices keep state, or whose phases have graphs of their own: an older device would ignore
the fields that say so, and send another update than the algorithm's."""
DOWNLOAD_SCHEMA = 4
"""The schema of plans whose checkpoints are encoded: an older device would only refuse their size."""


def needed_schema(privacy: PrivacyTerms, phases: tuple["Phase", ...] = (), download: str = "") -> int:
    """Return the schema of a plan with these: the lowest that makes a device that does not know them refuse."""
    if download:
        return DOWNLOAD_SCHEMA
    if any(p.needs_state_schema for p in phases):
        return STATE_SCHEMA
    if privacy.secure is not None and privacy.secure.is_active:
        return ACTIVE_SCHEMA
    return NOISE_SCHEMA if privacy.noise is not None else 1
