"""The error tree. Every message says where, what was expected, what came, and what to do next.

::

    CoveyError
    ├── UsageError             usage                 what was typed cannot be done (exit code 2)
    │   └── CompressionSpecError compression_spec    a spec outside the grammar, or of stages that do not go together
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
    │   └── PlanRefusedError   plan_refused          valid, but outside what this device's owner accepted
    ├── DataError              data_invalid
    │   ├── DatasetMissingError dataset_missing
    │   ├── ExampleError       example_invalid       wrong shape, dtype or value
    │   └── TooFewExamplesError too_few_examples     an empty device, or one below the plan's minimum
    ├── TrainingError          training_not_finite   a NaN or an infinity in a loss or an update
    ├── WorkerError            worker_ended          a process of a simulation that ended by itself
    ├── UpdateError            update_invalid
    │   ├── UpdateFormatError  update_format         truncated, oversized, or of another layout
    │   ├── UpdateNotFiniteError update_not_finite
    │   └── UpdateRangeError   update_range          outside the bound that makes overflow impossible
    ├── LayoutError            layout_invalid        segments whose sum could overflow, or that do not match
    ├── WireError              wire_invalid          a message that cannot be read
    │   ├── TooLargeError      body_too_large
    │   ├── VersionError       wire_version
    │   └── UnauthorizedError  unauthorized          no credential, or one that is forged or expired
    ├── SessionError           session_invalid
    │   ├── SessionUnknownError session_unknown      no such session here (for example after a restart)
    │   ├── RoundClosedError   round_closed          a stale round: closed before the report came
    │   └── AlreadyCountedError already_counted      a second report for one session
    ├── StateError             illegal_transition    a message that the state machine does not accept now
    ├── TransportError         unreachable           no answer, a broken connection, a wrong certificate
    ├── BusyError              busy                  no room now; come again after ``retry_after_s``
    ├── NotFoundError          not_found
    ├── StorageError           storage
    │   ├── StorageFullError   storage_full
    │   └── BlobHashError      blob_hash             a stored or downloaded blob is not what its name says
    └── PortInUseError         port_in_use

Messages never hold a secret, a device id or data. ``code`` is stable: it travels on the wire and has a section of its
own in ``docs/errors.md`` (a test enforces it).
"""

from typing import ClassVar

__all__ = [
    "AlreadyCountedError",
    "BlobHashError",
    "BusyError",
    "CompressionSpecError",
    "CoveyError",
    "DataError",
    "DatasetMissingError",
    "ExampleError",
    "LayoutError",
    "MissingExtraError",
    "NotFoundError",
    "ParityError",
    "PlanBuildError",
    "PlanError",
    "PlanFormatError",
    "PlanHashError",
    "PlanOpError",
    "PlanRefusedError",
    "PlanSchemaError",
    "PlanSignatureError",
    "PortInUseError",
    "RoundClosedError",
    "SessionError",
    "SessionUnknownError",
    "StateError",
    "StorageError",
    "StorageFullError",
    "TooFewExamplesError",
    "TooLargeError",
    "TrainingError",
    "TransportError",
    "UnauthorizedError",
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


class VersionError(WireError):
    """A protocol version that this side does not speak."""

    code = "wire_version"


class UnauthorizedError(WireError):
    """No credential, or one that is forged or expired."""

    code = "unauthorized"
    http_status = 401


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


class AlreadyCountedError(SessionError):
    """A second report for one session. For the device that is success."""

    code = "already_counted"
    http_status = 409


class StateError(CoveyError):
    """A message that the state machine does not accept in its present state."""

    code = "illegal_transition"
    http_status = 409


class TransportError(CoveyError):
    """No answer, a broken connection, or a certificate that is not the pinned authority's."""

    code = "unreachable"
    http_status = 502


class BusyError(CoveyError):
    """No room now: come again later."""

    code = "busy"
    http_status = 503


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


class BlobHashError(StorageError):
    """A stored or downloaded blob that is not what its name says."""

    code = "blob_hash"
    http_status = 500


class PortInUseError(CoveyError):
    """A port on which something else listens."""

    code = "port_in_use"


def all_errors() -> dict[str, type[CoveyError]]:
    """Every error of the tree by its stable code, so that a wire code can be turned back into its class."""
    found: dict[str, type[CoveyError]] = {}
    pending: list[type[CoveyError]] = [CoveyError]
    while pending:
        kind = pending.pop()
        found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found
