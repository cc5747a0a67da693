"""The server's configuration: a TOML file, read strictly."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from covey.admission.limits import Limits
from covey.types.errors import UsageError

__all__ = ["PaceConfig", "ReleaseConfig", "RoundConfig", "ServerConfig", "check_name", "load_config"]


LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_NAME = 64


class RoundConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[round]`` table; see :class:`covey.server.settings.RoundSettings` for the meaning of each value."""

    goal: int = 100
    over_selection: float = 1.3
    min_fraction: float = 0.7
    patience_s: float = 1.0
    selection_timeout_s: float = 300.0
    report_timeout_s: float = 600.0
    step_timeout_s: float = 30.0
    pause_s: float = 0.0
    max_rounds: int = 0
    hyper: dict[str, float] = {}
    lr_decay: float = 1.0


class PaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[pace]`` table: when devices come back; see :class:`covey.server.pace.PaceSettings`."""

    least_s: float = 60.0
    most_s: float = 86_400.0
    margin: float = 1.3


class ReleaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[release]`` table; see :class:`covey.server.promotion.ReleaseSettings` for the meaning of the first values.

    ``plan`` and ``signature`` are the evaluation plan and the owner's signature over it.
    """

    every: int = 10
    min_cohort: int = 0
    evaluate: bool = True
    min_devices: int = 30
    margin: float = 0.01
    confidence: float = 0.95
    attempts: int = 3
    plan: str = "evaluation.covey"
    signature: str = "evaluation.sig"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. Paths are relative to the server's directory.

    Attributes:
        population: whom this server serves.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        task: the name of the task that this file configures.
        plan: the archive of its plan; empty: tasks come by ``covey task create`` only.
        signature: the owner's signature over it, hex, a text file.
        checkpoint: the first checkpoint, packed tensors.
        owner_key: the owner's public key, PEM: plans that it did not sign are refused.
        poll_s: how long a check-in is held open.
        retry_s: when a device shall come back that found a server which stops.
        max_waiting: how many devices may wait at once.
        buffers: how many report bodies are in memory at once; more are asked to come again.
        num_shards: aggregators that share a cohort.
        unmask_workers: processes that take the masks off secure sums; 0: the aggregator's own thread does, which is
            enough for small models and groups.
        keep_checkpoints: how many checkpoints stay on the disk.
        enrolment: who gets a credential. ``open``: anybody, for a trusted network or a demonstration only; ``token``:
            who has a token of the application's backend; else an entry point of ``covey.attestation``.
        attestation: what the verifier needs; for ``token``, ``key``: the backend's public key, a PEM file.
        limits: how much one client may ask.
        metrics_port: where Prometheus metrics are served, on the loopback address without TLS; 0: nowhere.
        log_format: ``text``, or ``json`` for one JSON object in each line.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        round: how a round goes.
        pace: when devices come back.
        release: what becomes a release.
    """

    population: str
    host: str = "127.0.0.1"
    port: int = 8443
    task: str = "train"
    plan: str = "plan.covey"
    signature: str = "plan.sig"
    checkpoint: str = "checkpoint.bin"
    owner_key: str = "owner.pub"
    poll_s: float = 25.0
    retry_s: float = 1.0
    max_waiting: int = 10_000
    buffers: int = 8
    num_shards: int = 1
    unmask_workers: int = 0
    keep_checkpoints: int = 10
    enrolment: str = "open"
    attestation: dict[str, str] = {}
    limits: Limits = Limits()
    metrics_port: int = 0
    log_format: str = "text"
    log_level: str = "warning"
    round: RoundConfig = RoundConfig()
    pace: PaceConfig = PaceConfig()
    release: ReleaseConfig = ReleaseConfig()


def load_config(path: Path) -> ServerConfig:
    """Read and check a configuration.

    Raises:
        UsageError: no such file, not TOML, an unknown key (with the nearest known one), or a value out of range.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as e:
        raise UsageError(
            f"configuration {path}",
            expected="a readable file",
            got=e.strerror or "an error",
            hint="`covey init DIR` writes one",
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"configuration {path}", expected="TOML", got=str(e)) from e
    _known_keys(path, table, ServerConfig, "")
    for name, kind in (("round", RoundConfig), ("pace", PaceConfig), ("release", ReleaseConfig), ("limits", Limits)):
        if isinstance(table.get(name), dict):
            _known_keys(path, table[name], kind, f"{name}.")
    try:
        config = msgspec.convert(table, ServerConfig)
    except msgspec.ValidationError as e:
        raise UsageError(f"configuration {path}", expected="a value of the right type", got=str(e)) from e
    _check(path, config)
    return config


def _known_keys(path: Path, table: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    known = kind.__struct_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=2)
            raise UsageError(
                f"configuration {path}",
                expected="known keys",
                got=f"{prefix}{key}",
                hint=f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}",
            )


def _check(path: Path, config: ServerConfig) -> None:
    ranges: dict[str, tuple[float, float]] = {
        "port": (0, 65535),
        "metrics_port": (0, 65535),
        "max_waiting": (1, 10_000_000),
        "buffers": (1, 4096),
        "num_shards": (1, 1024),
        "unmask_workers": (0, 1024),
        "keep_checkpoints": (1, 1_000_000),
        "poll_s": (0.01, 60),
        "retry_s": (0, 86_400),
    }
    _check_ranges(path, config, "", ranges)
    paces: dict[str, tuple[float, float]] = {"most_s": (0.05, 86_400), "margin": (1, 100)}
    _check_ranges(path, config.pace, "pace.", paces)
    _check_ranges(path, config.pace, "pace.", {"least_s": (0.05, config.pace.most_s)})
    config.limits.check(f"configuration {path}")
    for name, known in (("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS)):
        if (text := getattr(config, name)) not in known:
            raise UsageError(f"configuration {path}: {name}", expected=" or ".join(known), got=text)
    check_name(f"configuration {path}: population", config.population)
    check_name(f"configuration {path}: task", config.task)


def check_name(where: str, name: str) -> None:
    """Raise UsageError for a name that would not go into addresses, paths and files as it is."""
    safe = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    if not 0 < len(name) <= _MAX_NAME or not set(name) <= safe or name.startswith("."):
        raise UsageError(where, expected=f"1 to {_MAX_NAME} letters, digits and -_.", got=repr(name[: 2 * _MAX_NAME]))


def _check_ranges(path: Path, table: msgspec.Struct, prefix: str, ranges: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(table, name)
        if not low <= value <= high:
            raise UsageError(f"configuration {path}: {prefix}{name}", expected=f"{low} to {high}", got=str(value))
