"""The OpenAPI document: every route with what it takes, what it answers and every error, from the message types.

A test keeps it equal to the application's routes, and another one fuzzes every route by it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from covey import __version__
from covey.plans.release import Release
from covey.server.health import Health
from covey.server.releases import ReleaseHistory
from covey.types.errors import (
    AlreadyCountedError,
    AsynchronousError,
    AttestationError,
    BlobHashError,
    BudgetExhaustedError,
    BusyError,
    CompressionSpecError,
    ConsistencyError,
    ContentEncodingError,
    CoveyError,
    EnrolmentError,
    LayoutError,
    MissingExtraError,
    NotFoundError,
    PlanError,
    PlanFormatError,
    PlanHashError,
    PlanOpError,
    PlanSchemaError,
    PlanSignatureError,
    PrivacyError,
    PublicKeyError,
    RateLimitedError,
    ReleaseRefusedError,
    RoundClosedError,
    SecAggError,
    SecAggMessageError,
    SessionUnknownError,
    ShareError,
    StateError,
    StorageError,
    StorageFullError,
    StorageLockedError,
    TaskStateError,
    ThresholdError,
    TooLargeError,
    TooSlowError,
    TooStaleError,
    UnauthorizedError,
    UnhealthyError,
    UpdateError,
    UpdateFormatError,
    UpdateNotFiniteError,
    UpdateRangeError,
    UsageError,
    VersionError,
    WireError,
)
from covey.wire.administration import PopulationDetails, Populations, ReleaseWanted, TaskChange, TaskStatus, TaskWanted
from covey.wire.messages import (
    ACTIVE_STEPS,
    Abandon,
    Abandoned,
    Assignment,
    BlobRef,
    CheckIn,
    ComeBack,
    Enroll,
    Enrolled,
    ErrorBody,
    Joined,
    PopulationStatus,
    Reported,
    Taken,
)

__all__ = ["OPERATIONS", "Operation", "openapi_document"]

Errors = tuple[type[CoveyError], ...]

BINARY = "application/octet-stream"
JSON = "application/json"

DEVICE = "device"
"""The security scheme of devices: a bearer credential of ``POST /v1/enroll``."""
ADMIN = "admin"
"""That of administrators: the token in the server's directory. Neither takes the place of the other."""

_ALWAYS: Errors = (WireError, NotFoundError, RateLimitedError, BusyError, CoveyError, StorageError)
_BODY: Errors = (TooLargeError, TooSlowError, ContentEncodingError)
_DEVICE: Errors = (UnauthorizedError,)
_SESSION: Errors = (SessionUnknownError, RoundClosedError, TooStaleError)
_UPDATE: Errors = (AlreadyCountedError, UpdateError, UpdateFormatError, UpdateNotFiniteError, UpdateRangeError)
_SECURE: Errors = (
    StateError, SecAggError, SecAggMessageError, ThresholdError, PublicKeyError, EnrolmentError, ShareError,
    ConsistencyError,
)  # fmt: skip

_PLAN: Errors = (
    UsageError, PlanError, PlanFormatError, PlanHashError, PlanOpError, PlanSchemaError, PlanSignatureError,
    CompressionSpecError, MissingExtraError, LayoutError, AsynchronousError,
)  # fmt: skip
_TASK: Errors = (UsageError, TaskStateError, PrivacyError, BudgetExhaustedError)

_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "session": {"type": "string", "description": "of an Assignment; unguessable"},
    "step": {"type": "string", "enum": list(ACTIVE_STEPS)},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "population": {"type": "string"},
    "task": {"type": "string"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        method: in capitals.
        path: with parameters in braces.
        summary: one line.
        answers: for each status that is no error what comes back: message types, ``BINARY``, ``dict`` for any object,
            or nothing.
        errors: besides those that every route has.
        body: a message type, ``BINARY``, or None.
        security: the scheme, or None for a public route.
        query: query parameters and their schemas.
    """

    method: str
    path: str
    summary: str
    answers: Mapping[int, tuple[Any, ...]]
    errors: Errors = ()
    body: Any = None
    security: str | None = None
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)


_ADMINISTERED = "/v1/admin/populations/{population}"
_BLOB = {200: (BINARY,), 206: (BINARY,), 416: ()}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/v1/enroll", "Ask for a credential.", {200: (Enrolled,)}, (*_BODY, AttestationError), body=Enroll
    ),
    Operation(
        "POST", "/v1/checkin", "Ask for work; a long poll.", {200: (Assignment, ComeBack)},
        (*_BODY, *_DEVICE, VersionError), body=CheckIn, security=DEVICE,
    ),
    Operation(
        "POST", "/v1/sessions/{session}/report", "Send an update, in plain mode.", {200: (Reported,)},
        (*_BODY, *_DEVICE, *_SESSION, *_UPDATE), body=BINARY, security=DEVICE,
    ),
    Operation(
        "POST", "/v1/sessions/{session}/secure/{step}", "Send a message of a secure sum.", {200: (Taken, Reported)},
        (*_BODY, *_DEVICE, *_SESSION, *_UPDATE, *_SECURE), body=BINARY, security=DEVICE,
    ),
    Operation(
        "GET", "/v1/sessions/{session}/secure/{step}", "Wait for what a step leads to; a long poll.",
        {200: (Joined, BINARY), 204: ()}, (*_DEVICE, *_SESSION, *_SECURE), security=DEVICE,
    ),
    Operation(
        "POST", "/v1/sessions/{session}/abandon", "Say that a session ends here.", {200: (Abandoned,)},
        (*_BODY, *_DEVICE, *_SESSION), body=Abandon, security=DEVICE,
    ),
    Operation(
        "GET", "/v1/plans/{sha256}", "A plan's archive, or the rest of it; immutable.", _BLOB, (*_DEVICE, BlobHashError)
    ),
    Operation(
        "GET", "/v1/checkpoints/{sha256}", "Packed tensors, or the rest of them; immutable.", _BLOB,
        (*_DEVICE, BlobHashError),
    ),
    Operation(
        "GET", "/v1/populations/{population}", "The public state of a population.", {200: (PopulationStatus,)},
        query={"after": _COUNT},
    ),
    Operation(
        "GET", "/v1/populations/{population}/release", "The model that devices serve.", {200: (Release,)}
    ),
    Operation(
        "GET", "/v1/populations/{population}/releases", "Every release, and every candidate with its verdict.",
        {200: (ReleaseHistory,)},
    ),
    Operation(
        "GET", "/v1/admin/populations", "What this server serves.", {200: (Populations,)}, _DEVICE, security=ADMIN
    ),
    Operation(
        "GET", _ADMINISTERED, "How a population and its tasks stand.", {200: (PopulationDetails,)}, _DEVICE,
        security=ADMIN,
    ),
    Operation(
        "POST", f"{_ADMINISTERED}/plans", "Store a plan that the owner signed.", {200: (BlobRef,)},
        (*_DEVICE, *_BODY, *_PLAN), body=BINARY, security=ADMIN, query={"signature": {"type": "string"}},
    ),
    Operation(
        "POST", f"{_ADMINISTERED}/tasks", "Create a task.", {200: (TaskStatus,)}, (*_DEVICE, *_BODY, *_PLAN, *_TASK),
        body=TaskWanted, security=ADMIN,
    ),
    Operation(
        "POST", f"{_ADMINISTERED}/tasks/{{task}}", "Pause, resume, cancel or roll back a task.", {200: (TaskStatus,)},
        (*_DEVICE, *_BODY, *_TASK), body=TaskChange, security=ADMIN,
    ),
    Operation(
        "POST", f"{_ADMINISTERED}/releases", "Publish an earlier release again, as a new version.", {200: (Release,)},
        (*_DEVICE, *_BODY, ReleaseRefusedError, UsageError), body=ReleaseWanted, security=ADMIN,
    ),
    Operation("GET", "/healthz", "Whether the server works.", {200: (Health,)}, (UnhealthyError,)),
    Operation("GET", "/v1/openapi.json", "This document.", {200: (dict,)}),
)  # fmt: skip
"""Every operation of the server."""


def openapi_document(operations: Iterable[Operation] = OPERATIONS) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of some operations."""
    all_ = tuple(operations)
    kinds = {k for o in all_ for k in (o.body, *(a for given in o.answers.values() for a in given)) if _is_type(k)}
    named = sorted(kinds | {ErrorBody}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(named, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for o in all_:
        paths.setdefault(o.path, {})[o.method.lower()] = _operation(o)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Covey",
            "version": __version__,
            "description": "The protocol of wire/SPEC.md. Every failure is an ErrorBody whose code is documented.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {s: {"type": "http", "scheme": "bearer"} for s in _schemes(all_)},
        },
    }


def _is_type(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _schemes(operations: tuple[Operation, ...]) -> list[str]:
    return sorted({o.security for o in operations if o.security})


def _operation(o: Operation) -> dict[str, Any]:
    responses = {str(status): _answer(kinds) for status, kinds in o.answers.items()}
    made: dict[str, Any] = {"summary": o.summary, "responses": responses | _failures((*_ALWAYS, *o.errors))}
    names = [part[1:-1] for part in o.path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": _PARAMETERS[n]} for n in names]
    parameters += [{"name": n, "in": "query", "required": False, "schema": s} for n, s in o.query.items()]
    if parameters:
        made["parameters"] = parameters
    if o.body is not None:
        made["requestBody"] = {"required": True, "content": _content((o.body,))}
    if o.security is not None:
        made["security"] = [{o.security: []}]
    return made


def _answer(kinds: tuple[Any, ...]) -> dict[str, Any]:
    if not kinds:
        return {"description": "no content: nothing yet, or nothing from there on"}
    return {"description": "success", "content": _content(kinds)}


def _content(kinds: tuple[Any, ...]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    structs = [_reference(k) for k in kinds if k != BINARY]
    if structs:
        content[JSON] = {"schema": structs[0] if len(structs) == 1 else {"anyOf": structs}}
    if BINARY in kinds:
        content[BINARY] = {"schema": {"type": "string", "format": "binary"}}
    return content


def _reference(kind: Any) -> dict[str, Any]:
    return {"type": "object"} if kind is dict else {"$ref": f"#/components/schemas/{kind.__name__}"}


def _failures(errors: Errors) -> dict[str, Any]:
    """Return the error answers by status, each with the codes that it may hold."""
    by_status: dict[int, set[str]] = {405: {WireError.code}}
    for kind in errors:
        by_status.setdefault(500 if kind is CoveyError else kind.http_status, set()).add(kind.code)
    for kind in (StorageFullError, StorageLockedError):
        by_status.setdefault(kind.http_status, set()).add(kind.code)
    return {
        str(status): {
            "description": f"an error: {', '.join(sorted(codes))}",
            "content": {
                JSON: {
                    "schema": {
                        "allOf": [_reference(ErrorBody)],
                        "properties": {"code": {"enum": sorted(codes)}},
                    }
                }
            },
        }
        for status, codes in sorted(by_status.items())
    }
