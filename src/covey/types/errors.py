"""The error tree. Every message says where, what was expected, what came, and what to do next.

::

    CoveyError
    ├── UsageError             usage                 what was typed cannot be done (exit code 2)
    │   ├── PrivacySpecError   privacy_spec          a ``--privacy`` SPEC that cannot be read
    │   └── CompressionSpecError compression_spec    a spec outside the grammar, or of stages that do not go together
    ├── RecipeError            recipe_failed         a user's own recipe file raised an error
    ├── MissingExtraError      missing_extra         an optional package that this needs is not installed
    ├── PlanError              plan_invalid
    │   ├── PlanBuildError     plan_build            a task that cannot become a plan
    │   │   ├── UnsupportedPrimitiveError  plan_unsupported_primitive
    │   │   └── ParityError    plan_parity           the graph and JAX disagree
    │   ├── PlanFormatError    plan_format           not the canonical archive, over a cap, a bad manifest
    │   ├── PlanHashError      plan_hash             the bytes are not those that were named
    │   ├── PlanSignatureError plan_signature        not signed by the pinned owner
    │   ├── PlanOpError        plan_op               a graph with an op, domain or feature outside the list
    │   ├── PlanSchemaError    plan_schema           written for a newer Covey
    │   ├── AsynchronousError  asynchronous          an asynchronous algorithm where only rounds are possible
    │   ├── PlanRefusedError   plan_refused          valid, but outside what this device's owner accepted
    │   ├── ParticipationError participation         the plan's privacy terms do not let this device take part again yet
    │   └── OverBudgetError    over_budget           it took more memory than the budget that it names
    ├── DataError              data_invalid
    │   ├── DatasetMissingError dataset_missing
    │   ├── ExampleError       example_invalid       wrong shape, dtype or value
    │   └── TooFewExamplesError too_few_examples     an empty device, or one below the plan's minimum
    ├── TrainingError          training_not_finite   a NaN or an infinity in a loss or an update
    ├── ResumeError            resume                a simulation's run that cannot be taken up again
    ├── WorkerError            worker_ended          a process of a simulation that ended by itself
    ├── UpdateError            update_invalid
    │   ├── UpdateFormatError  update_format         truncated, oversized, or of another layout
    │   ├── UpdateNotFiniteError update_not_finite
    │   └── UpdateRangeError   update_range          outside the bound that makes overflow impossible
    ├── LayoutError            layout_invalid        segments whose sum could overflow, or that do not match
    ├── WireError              wire_invalid          a message that cannot be read
    │   ├── TooLargeError      body_too_large
    │   ├── TooSlowError       too_slow              a request whose body did not come in time
    │   ├── ContentEncodingError content_encoding    a body that is compressed
    │   ├── VersionError       wire_version
    │   ├── CheckpointFormatError checkpoint_format  a downloaded checkpoint that cannot be decoded
    │   ├── UnauthorizedError  unauthorized          no credential, or one that is forged or expired
    │   └── AttestationError   attestation_refused   no proof of being a device of the application
    ├── SessionError           session_invalid
    │   ├── SessionUnknownError session_unknown      no such session here (for example after a restart)
    │   ├── RoundClosedError   round_closed          a stale round: closed before the report came
    │   ├── TooStaleError      too_stale             an update that began too many versions of the model ago
    │   ├── AlreadyInRoundError already_in_round     a device that takes part in the round, or waits, already
    │   └── AlreadyCountedError already_counted      a second report for one session
    ├── StateError             illegal_transition    a message that the state machine does not accept now
    │   └── TaskStateError     task_state            a task that cannot do in its state what was asked
    ├── SecAggError            secagg                a secure sum that cannot go on
    │   ├── SecAggMessageError secagg_message        malformed, of another session, or not canonical
    │   ├── ThresholdError     secagg_threshold      fewer than t shares, or fewer than min_survivors parties
    │   ├── PublicKeyError     secagg_public_key     forged, swapped, repeated, not canonical, or of low order
    │   ├── EnrolmentError     secagg_enrolment      no certificate from the pinned authority, or an expired one
    │   ├── ShareError         secagg_share          tampered, misrouted, or not the share that was dealt
    │   ├── ConsistencyError   secagg_consistency    parties were told different things, or a party twice
    │   ├── CounterError       secagg_counter        the opened counter is not the number of survivors
    │   ├── SecAggParameterError secagg_parameters   no degree and threshold satisfy what was asked
    │   └── SessionReusedError secagg_session_reused a session id that was used before
    ├── TransportError         unreachable           no answer, a broken connection, a wrong certificate
    ├── BusyError              busy                  no room now; come again after ``retry_after_s``
    │   └── RateLimitedError   rate_limited          more requests than a device makes
    ├── NotFoundError          not_found
    ├── StorageError           storage
    │   ├── StorageFullError   storage_full
    │   ├── StorageLockedError storage_locked        another program writes into the database
    │   ├── BlobHashError      blob_hash             a stored or downloaded blob is not what its name says
    │   ├── LedgerBrokenError  ledger_broken         the chain of a device's ledger does not hold
    │   ├── StoreCorruptError  store_corrupt         an example store whose file is damaged
    │   └── StoreSealedError   store_sealed          an encrypted example store without its key, or a plain one
    ├── PortInUseError         port_in_use
    ├── UnhealthyError         unhealthy             the storage does not answer, or no clock runs
    ├── ReleaseRefusedError    release_refused       forged, expired, stale, or of another population
    ├── NoReleaseError         no_release            a device that is asked for a model before it has one
    └── PrivacyError           privacy_invalid       a promise of differential privacy that cannot be kept
        ├── ClipMissingError   privacy_no_clip       noise without a clip
        ├── DeltaError         privacy_delta         delta of 1/population or more
        ├── NoiseError         privacy_noise         noise too small for its promise or its integers, or too large
        ├── SeededNoiseError   privacy_seeded_noise  injected randomness outside a simulation
        └── BudgetExhaustedError privacy_budget      a population's privacy budget does not allow one more sum

Messages never hold a secret, a device id or data. ``code`` is stable: it travels on the wire and has a section of its
own in ``docs/errors.md`` (a test enforces it).
"""

from typing import ClassVar

__all__ = [
    "AlreadyCountedError",
    "AlreadyInRoundError",
    "AttestationError",
    "BlobHashError",
    "BudgetExhaustedError",
    "BusyError",
    "CheckpointFormatError",
    "ClipMissingError",
    "CompressionSpecError",
    "ConsistencyError",
    "ContentEncodingError",
    "CounterError",
    "CoveyError",
    "DataError",
    "DatasetMissingError",
    "DeltaError",
    "EnrolmentError",
    "ExampleError",
    "LayoutError",
    "LedgerBrokenError",
    "MissingExtraError",
    "NoiseError",
    "NoReleaseError",
    "NotFoundError",
    "OverBudgetError",
    "ParityError",
    "ParticipationError",
    "PlanBuildError",
    "PlanError",
    "PlanFormatError",
    "PlanHashError",
    "PlanOpError",
    "PlanRefusedError",
    "PlanSchemaError",
    "PlanSignatureError",
    "PortInUseError",
    "PrivacyError",
    "PrivacySpecError",
    "PublicKeyError",
    "RateLimitedError",
    "RecipeError",
    "ReleaseRefusedError",
    "RoundClosedError",
    "SecAggError",
    "SecAggMessageError",
    "SecAggParameterError",
    "SeededNoiseError",
    "SessionError",
    "SessionReusedError",
    "SessionUnknownError",
    "ShareError",
    "StateError",
    "StorageError",
    "StorageFullError",
    "StorageLockedError",
    "StoreCorruptError",
    "StoreSealedError",
    "TaskStateError",
    "ThresholdError",
    "TooFewExamplesError",
    "TooLargeError",
    "TooSlowError",
    "TrainingError",
    "TransportError",
    "UnauthorizedError",
    "UnhealthyError",
    "UnsupportedPrimitiveError",
    "UpdateError",
    "UpdateFormatError",
    "UpdateNotFiniteError",
    "UpdateRangeError",
    "UsageError",
    "VersionError",
    "WireError",
    "WorkerError",
    "all_errors",
]


class CoveyError(Exception):
    """Anything that Covey itself reports.

    Attributes:
        code: stable, machine-readable name of the failure; travels on the wire.
        http_status: the status with which a server reports it.
        exit_code: what a command exits with (2 for usage, 1 for failure).
        where: the place: a file, a field, a step. Never a device id.
        expected: what would have been right.
        got: what came instead. Never data.
        hint: what to do next; may be empty.
        retry_after_s: above 0 where the same request may succeed later.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, *, expected: str, got: str, hint: str = "") -> None:
        super().__init__(where, expected, got, hint)
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint
        self.retry_after_s = 0.0

    def __str__(self) -> str:
        """One line without the hint, which is printed on a line of its own."""
        return f"{self.where}: expected {self.expected}, got {self.got}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and workers send errors home.
        return (_rebuild, (type(self), self.where, self.expected, self.got, self.hint))


def _rebuild(kind: type[CoveyError], where: str, expected: str, got: str, hint: str) -> CoveyError:
    return kind(where, expected=expected, got=got, hint=hint)


class UsageError(CoveyError):
    """What was typed cannot be done."""

    code = "usage"
    exit_code = 2


class RecipeError(CoveyError):
    """A user's own recipe file raised an error. The hint is its traceback, from the first of their own lines on."""

    code = "recipe_failed"


class PrivacySpecError(UsageError):
    """A ``--privacy`` SPEC that cannot be read; names the near misses."""

    code = "privacy_spec"


class CompressionSpecError(UsageError):
    """A compression spec outside the grammar, or of stages that do not go together."""

    code = "compression_spec"


class MissingExtraError(CoveyError):
    """An optional package that this needs is not installed."""

    code = "missing_extra"


class PlanError(CoveyError):
    """A plan that cannot be used."""

    code = "plan_invalid"


class PlanBuildError(PlanError):
    """A task that cannot become a plan."""

    code = "plan_build"


class UnsupportedPrimitiveError(PlanBuildError):
    """A JAX primitive that the lowering does not know; names it and the user's line."""

    code = "plan_unsupported_primitive"


class ParityError(PlanBuildError):
    """The lowered graph and JAX disagree: the plan must not ship."""

    code = "plan_parity"


class PlanFormatError(PlanError):
    """Not the canonical archive, over a size cap, or a malformed manifest."""

    code = "plan_format"


class PlanHashError(PlanError):
    """The bytes are not those that were named."""

    code = "plan_hash"


class PlanSignatureError(PlanError):
    """Not signed by the owner whose key the device pins."""

    code = "plan_signature"


class PlanOpError(PlanError):
    """A graph with an op, domain or feature outside the allow-list."""

    code = "plan_op"


class PlanSchemaError(PlanError):
    """A plan written for a newer Covey."""

    code = "plan_schema"


class PlanRefusedError(PlanError):
    """A valid plan outside what this device's owner accepted."""

    code = "plan_refused"


class AsynchronousError(PlanError):
    """An asynchronous algorithm where only rounds are possible: secure aggregation, or differential privacy."""

    code = "asynchronous"


class ParticipationError(PlanError):
    """The plan's privacy terms do not let this device take part again so soon, or at all."""

    code = "participation"


class OverBudgetError(PlanError):
    """A plan that took more of the device than the budget which it names; it was ended."""

    code = "over_budget"


class DataError(CoveyError):
    """Data that cannot be used."""

    code = "data_invalid"


class DatasetMissingError(DataError):
    """A data set that is not on this machine."""

    code = "dataset_missing"


class ExampleError(DataError):
    """An example of the wrong shape, dtype or value."""

    code = "example_invalid"


class TooFewExamplesError(DataError):
    """A device with no examples, or fewer than the plan's minimum."""

    code = "too_few_examples"


class TrainingError(CoveyError):
    """A NaN or an infinity in a loss or an update on the device."""

    code = "training_not_finite"


class ResumeError(CoveyError):
    """A run that cannot be taken up again: of another configuration, or not there."""

    code = "resume"


class WorkerError(CoveyError):
    """A worker process of a simulation that ended by itself."""

    code = "worker_ended"


class UpdateError(CoveyError):
    """An update that cannot be folded."""

    code = "update_invalid"
    http_status = 422


class UpdateFormatError(UpdateError):
    """A truncated, oversized or differently laid out update."""

    code = "update_format"
    http_status = 422


class UpdateNotFiniteError(UpdateError):
    """An update with a NaN or an infinity."""

    code = "update_not_finite"
    http_status = 422


class UpdateRangeError(UpdateError):
    """An update outside the bound that makes overflow impossible."""

    code = "update_range"
    http_status = 422


class LayoutError(CoveyError):
    """Segments whose sum could overflow, or that do not match."""

    code = "layout_invalid"


class WireError(CoveyError):
    """A message that cannot be read."""

    code = "wire_invalid"


class TooLargeError(WireError):
    """A body above its limit."""

    code = "body_too_large"
    http_status = 413


class TooSlowError(WireError):
    """A request whose headers or body did not come in time."""

    code = "too_slow"
    http_status = 408


class ContentEncodingError(WireError):
    """A body that is compressed: nothing here is unpacked."""

    code = "content_encoding"
    http_status = 415


class VersionError(WireError):
    """A protocol version that this side does not speak."""

    code = "wire_version"


class CheckpointFormatError(WireError):
    """A downloaded checkpoint that is what its name says, and not what the plan's download spec makes."""

    code = "checkpoint_format"


class UnauthorizedError(WireError):
    """No credential, or one that is forged or expired."""

    code = "unauthorized"
    http_status = 401


class AttestationError(WireError):
    """No proof of being a device of the application, or one that is forged, expired, for others, or used up."""

    code = "attestation_refused"
    http_status = 403


class SessionError(CoveyError):
    """A session that cannot go on."""

    code = "session_invalid"
    http_status = 409


class SessionUnknownError(SessionError):
    """No such session here, for example after a restart."""

    code = "session_unknown"
    http_status = 404


class RoundClosedError(SessionError):
    """A stale round: it closed before the report came."""

    code = "round_closed"
    http_status = 409


class TooStaleError(SessionError):
    """An update that began too many versions of the model ago, in asynchronous aggregation."""

    code = "too_stale"
    http_status = 409


class AlreadyInRoundError(SessionError):
    """A device that takes part in the round already, or waits already: its credential counts once."""

    code = "already_in_round"
    http_status = 409


class AlreadyCountedError(SessionError):
    """A second report for one session. For the device that is success."""

    code = "already_counted"
    http_status = 409


class StateError(CoveyError):
    """A message that the state machine does not accept in its present state."""

    code = "illegal_transition"
    http_status = 409


class TaskStateError(StateError):
    """A task that cannot do in its present state what was asked."""

    code = "task_state"


class SecAggError(CoveyError):
    """A secure sum that cannot go on."""

    code = "secagg"
    http_status = 409


class SecAggMessageError(SecAggError):
    """A message that is malformed, of another session, or not in its one canonical encoding."""

    code = "secagg_message"
    http_status = 422


class ThresholdError(SecAggError):
    """Fewer than ``t`` shares, or fewer than ``min_survivors`` parties: nothing is opened."""

    code = "secagg_threshold"


class PublicKeyError(SecAggError):
    """A public key that is forged, swapped, repeated, not canonical, or of low order."""

    code = "secagg_public_key"
    http_status = 422


class EnrolmentError(SecAggError):
    """An identity without a valid certificate from the pinned enrolment authority."""

    code = "secagg_enrolment"
    http_status = 401


class ShareError(SecAggError):
    """A share that was tampered with or misrouted, or shares that do not combine to what was committed to."""

    code = "secagg_share"
    http_status = 422


class ConsistencyError(SecAggError):
    """Parties were told different things, or one party was asked twice."""

    code = "secagg_consistency"


class CounterError(SecAggError):
    """The opened counter is not the number of survivors: keys, shares or inputs diverged."""

    code = "secagg_counter"


class SecAggParameterError(SecAggError):
    """No degree and threshold satisfy what was asked, or those given are unsafe."""

    code = "secagg_parameters"


class SessionReusedError(SecAggError):
    """A session id that was used before."""

    code = "secagg_session_reused"


class TransportError(CoveyError):
    """No answer, a broken connection, or a certificate that is not the pinned authority's."""

    code = "unreachable"
    http_status = 502


class BusyError(CoveyError):
    """No room now: come again later."""

    code = "busy"
    http_status = 503


class RateLimitedError(BusyError):
    """More requests than a device makes: come again after ``retry_after_s``."""

    code = "rate_limited"
    http_status = 429


class NotFoundError(CoveyError):
    """No such population, plan or checkpoint."""

    code = "not_found"
    http_status = 404


class StorageError(CoveyError):
    """Storage that failed or does not hold what it should."""

    code = "storage"
    http_status = 500


class StorageFullError(StorageError):
    """A disk or quota that is full."""

    code = "storage_full"
    http_status = 507


class StorageLockedError(StorageError):
    """A database into which another program writes for too long."""

    code = "storage_locked"
    http_status = 503


class BlobHashError(StorageError):
    """A stored or downloaded blob that is not what its name says."""

    code = "blob_hash"
    http_status = 500


class LedgerBrokenError(StorageError):
    """A device's ledger whose chain does not hold: an entry was changed, dropped or damaged."""

    code = "ledger_broken"


class StoreCorruptError(StorageError):
    """An example store whose file is damaged."""

    code = "store_corrupt"


class StoreSealedError(StorageError):
    """An encrypted example store without the key that fits, or a plain one where encryption was asked for."""

    code = "store_sealed"


class PortInUseError(CoveyError):
    """A port on which something else listens."""

    code = "port_in_use"


class NoReleaseError(CoveyError):
    """A device that is asked for a prediction before it has a release."""

    code = "no_release"


class UnhealthyError(CoveyError):
    """A server that cannot do its work: its storage does not answer, or the clock of its rounds stands still."""

    code = "unhealthy"
    http_status = 503


class ReleaseRefusedError(CoveyError):
    """A release, or the delegation behind it, that is forged, expired, stale, or of another population."""

    code = "release_refused"


class PrivacyError(CoveyError):
    """A promise of differential privacy that cannot be kept."""

    code = "privacy_invalid"


class ClipMissingError(PrivacyError):
    """Noise without a clip: no amount of noise hides a contribution without a bound."""

    code = "privacy_no_clip"


class DeltaError(PrivacyError):
    """A delta of 1/population or more, under which publishing one device's data whole would count as private."""

    code = "privacy_delta"


class NoiseError(PrivacyError):
    """Noise too small for its promise or its integers, or too large for them."""

    code = "privacy_noise"


class SeededNoiseError(PrivacyError):
    """Injected randomness outside a simulation: whoever knows the seed can take the noise away."""

    code = "privacy_seeded_noise"


class BudgetExhaustedError(PrivacyError):
    """A population's privacy budget does not allow one more sum to be opened."""

    code = "privacy_budget"
    http_status = 409


def all_errors() -> dict[str, type[CoveyError]]:
    """Every error of the tree by its stable code, so that a wire code can be turned back into its class."""
    found: dict[str, type[CoveyError]] = {}
    pending: list[type[CoveyError]] = [CoveyError]
    while pending:
        kind = pending.pop()
        found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found
