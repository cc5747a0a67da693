"""The control messages: JSON, versioned, unknown fields ignored. Tensors travel as binary bodies (``framing``).

One session, in order::

    device                                   server
      POST /v1/enroll            Enroll   ->          <- Enrolled          (once, then again before it expires)
      POST /v1/checkin           CheckIn  ->          <- Assignment | ComeBack   (a bounded long-poll)
      GET  /v1/plans/{hash}                           <- the plan's bytes        (immutable, cacheable)
      GET  /v1/checkpoints/{hash}                     <- packed or encoded tensors  (immutable, cacheable)
    in plain mode
      POST /v1/sessions/{session}/report  body ->     <- Reported
    in secure mode, for each STEP of ready, advertise, share, mask, unmask (consistency before it, if active)
      POST /v1/sessions/{session}/secure/STEP  body ->     <- Taken        (after unmask: Reported)
      GET  /v1/sessions/{session}/secure/STEP              <- what the step leads to     (a bounded long-poll)
    at any time
      POST /v1/sessions/{session}/abandon Abandon ->  <- Abandoned         (a condition lapsed: say so and go)

An enrolment authority, which is another program at another address, answers ``POST /v1/certify``: Certify -> Certified.
An administrator's messages are in :mod:`covey.wire.administration`.

Every failure is an :class:`ErrorBody` with a stable code.
"""

from typing import Any, TypeVar

import msgspec

from covey.types.errors import CoveyError, VersionError, WireError, all_errors

__all__ = [
    "ACTIVE_STEPS",
    "CREDENTIAL_SCHEME",
    "PROTOCOL_VERSION",
    "Abandon",
    "Abandoned",
    "Assignment",
    "BlobRef",
    "Certified",
    "Certify",
    "CandidateSummary",
    "CheckIn",
    "ComeBack",
    "Enroll",
    "Enrolled",
    "ErrorBody",
    "Joined",
    "Message",
    "PopulationStatus",
    "Reported",
    "RoundSummary",
    "SECURE_STEPS",
    "Taken",
    "decode_message",
    "encode_message",
    "error_from_body",
]

PROTOCOL_VERSION = 1
CREDENTIAL_SCHEME = "Bearer"
SECURE_STEPS = ("ready", "advertise", "share", "mask", "unmask")
"""What a device sends in a secure session, in order; ``ready`` has no body and says that training is over."""
ACTIVE_STEPS = ("ready", "advertise", "share", "mask", "consistency", "unmask")
"""The same where the server may be active: devices sign what they were told before they unmask."""

MAX_MESSAGE_BYTES = 64 << 10
"""Control messages are small; anything longer is refused before it is parsed."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all control messages."""


class Enroll(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for a credential. ``attestation`` is what the deployment's verifier wants; empty where it wants nothing."""

    population: str
    attestation: str = ""


class Enrolled(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A short-lived bearer credential; opaque to the device. ``expires_in_s`` counts from now."""

    credential: str
    expires_in_s: float


class Certify(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Ask the enrolment authority for a certificate of ``identity_key``, an Ed25519 public key in hex."""

    population: str
    identity_key: str
    attestation: str = ""


class Certified(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The certificate: the authority's ``signature`` (hex) over label, population, key and ``expires_at``.

    ``expires_at`` is in seconds since 1970, exclusive. Everybody in a group sees it: it is the same for all who are
    certified within a short time.
    """

    expires_at: int
    signature: str


class BlobRef(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An immutable blob: its SHA-256, its size, and the path under which the server (or a CDN) serves it."""

    sha256: str
    num_bytes: int
    path: str


class CheckIn(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A device that may train now asks for work. It names no examples, no person and no device."""

    population: str
    protocol: int = PROTOCOL_VERSION


class Assignment(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Work for one session.

    Attributes:
        session: unguessable; good for one report.
        round: counts committed rounds of this task, from 1.
        phase: which phase of the plan to run.
        signature: the owner's signature over population and plan hash, hex.
        hyper: the per-round values; names missing here keep the plan's default.
        mode: ``plain`` or ``secure``; must be what the plan's privacy terms say.
        public_seed: 32 bytes in hex, the round's public randomness.
        report_within_s: when the round closes for this session.
        task: name of the task within the population.
        kind: ``train`` or ``evaluate``; must be what the plan's phase does.
    """

    session: str
    round: int
    phase: int
    plan: BlobRef
    signature: str
    checkpoint: BlobRef
    shared: BlobRef | None = None
    hyper: dict[str, float] = {}
    mode: str = "plain"
    public_seed: str = ""
    report_within_s: float
    task: str = ""
    kind: str = "train"


class ComeBack(Message, frozen=True, kw_only=True, omit_defaults=True):
    """No work now. ``reason`` is a stable word: ``not_selected``, ``between_rounds``, ``paused``, ``restarting``."""

    retry_after_s: float
    reason: str


class Reported(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The update is in the sum, and nowhere else. ``retry_after_s`` says when to check in again."""

    counted: bool
    retry_after_s: float


class Taken(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The message of this step has arrived; what it leads to is waited for."""

    step: str


class Joined(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The group of a secure sum, and the device's index in it. All else follows from plan and assignment."""

    group: int
    index: int


class Abandon(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The device stops early.

    ``reason``: an error code of :mod:`covey.types.errors`, ``condition_lapsed``, ``time_is_up``, or ``withheld``:
    something in training, of which a device tells nothing under a plan with noise.
    """

    reason: str


class Abandoned(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The server has forgotten the session."""

    retry_after_s: float


class ErrorBody(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A failure: a stable code, a public text and a hint. ``retry_after_s`` is above 0 where trying again may help."""

    code: str
    message: str
    hint: str = ""
    retry_after_s: float = 0.0


class RoundSummary(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What is public about a finished round: counts and sums over the cohort, nothing of any device.

    ``status`` is ``committed`` or ``abandoned`` (then ``reason`` says why). ``lost`` devices were selected and not
    counted: they gave up, dropped out, or came after the round had closed. ``metrics`` are means over the cohort's
    training examples, measured while it trained; of a round of kind ``evaluate``, over the examples that it evaluated
    the checkpoint on. A row with the status ``rolled_back`` is a new version of the model: an earlier checkpoint.
    """

    round: int
    status: str
    reason: str = ""
    selected: int
    reported: int
    lost: int
    seconds: float
    bytes_down: int
    bytes_up: int
    metrics: dict[str, float] = {}
    checkpoint: str = ""
    task: str = ""
    kind: str = "train"


class CandidateSummary(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A checkpoint that stood for release, and what became of it: sums over devices, nothing of any device.

    Attributes:
        round: the committed round whose checkpoint it is.
        task: the task whose round it is.
        checkpoint: its SHA-256.
        cohort: how many devices were in that round's sum.
        status: ``pending``, ``promoted`` or ``refused``.
        reason: a stable word where it was refused (docs/releases.md).
        version: of the release, where it was promoted.
        compared: how many devices compared it with the release before it.
        difference: the mean over devices, above 0 where the candidate is worse.
        limit: the one-sided upper confidence limit of that mean.
        decided_at: seconds since 1970.
    """

    round: int
    task: str = ""
    checkpoint: str
    cohort: int
    status: str = "pending"
    reason: str = ""
    version: int = 0
    compared: int = 0
    difference: float = 0.0
    limit: float = 0.0
    decided_at: int = 0


class PopulationStatus(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The public state of a population: where its newest checkpoint is, and the rounds after the one asked for.

    ``release`` is the version of the newest release, 0 before the first; ``releasing`` says ``on``, or why nothing is
    released.
    """

    population: str
    task: str
    state: str
    round: int
    waiting: int
    plan: BlobRef
    checkpoint: BlobRef
    mode: str
    min_cohort: int
    rounds: tuple[RoundSummary, ...] = ()
    release: int = 0
    releasing: str = ""


M = TypeVar("M", bound=Message)


def encode_message(message: Message) -> bytes:
    """Encode as JSON."""
    return msgspec.json.encode(message)


def decode_message(data: bytes, kind: type[M]) -> M:
    """Decode JSON as ``kind``.

    Raises:
        WireError: too long, not JSON, or not of this shape.
        VersionError: a protocol version that this side does not speak.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(kind.__name__, expected=f"at most {MAX_MESSAGE_BYTES} bytes", got=f"{len(data)} bytes")
    try:
        message = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        raise WireError(kind.__name__, expected="a message of this kind", got=str(e)[:200]) from e
    if isinstance(message, CheckIn) and message.protocol != PROTOCOL_VERSION:
        raise VersionError(
            "protocol", expected=str(PROTOCOL_VERSION), got=str(message.protocol), hint="upgrade the older side"
        )
    return message


def error_from_body(status: int, data: bytes, where: str) -> CoveyError:
    """Turn an error response back into the error that the other side raised.

    A body that is no :class:`ErrorBody` (a proxy's page, say) becomes a :class:`WireError` that names the status.
    """
    try:
        body: Any = msgspec.json.decode(data, type=ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return WireError(where, expected="an answer of this protocol", got=f"HTTP {status}")
    kind = all_errors().get(body.code, CoveyError)
    error = kind(where, expected="success", got=body.message, hint=body.hint)
    error.retry_after_s = body.retry_after_s
    return error
