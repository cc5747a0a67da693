"""The authority's configuration: a TOML file, read strictly."""

import tomllib
from pathlib import Path

import msgspec

from covey.admission.limits import Limits
from covey.types.errors import UsageError

__all__ = ["AuthorityConfig", "load_config"]


class AuthorityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. Paths are relative to the authority's directory.

    Attributes:
        population: whose devices are certified.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        lifetime_s: of a certificate. Short: who lost a device's memory has its identity for so long.
        max_remembered: how many attestations are remembered, so that each gives one certificate.
        enrolment: who is certified. ``token``: who has a token of the application's backend; ``open``: anybody, which
            leaves nothing of the protection against a server that plays devices; else an entry point.
        attestation: what the verifier needs; for ``token``, ``key``: the backend's public key, a PEM file.
        limits: how much one client may ask.
    """

    population: str
    host: str = "127.0.0.1"
    port: int = 8444
    lifetime_s: int = 3600
    max_remembered: int = 1_000_000
    enrolment: str = "token"
    attestation: dict[str, str] = {}
    limits: Limits = Limits()


def load_config(path: Path) -> AuthorityConfig:
    """Read and check a configuration.

    Raises:
        UsageError: no such file, not TOML, an unknown key, or a value out of range.
    """
    where = f"configuration {path}"
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), AuthorityConfig)
    except OSError as e:
        hint = "`covey authority init DIR` writes one"
        raise UsageError(where, expected="a readable file", got=e.strerror or "an error", hint=hint) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as e:
        raise UsageError(where, expected="TOML with known keys and values of the right type", got=str(e)) from e
    ranges = {"port": (0, 65535), "lifetime_s": (60, 86_400), "max_remembered": (1, 100_000_000)}
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise UsageError(f"{where}: {name}", expected=f"{low} to {high}", got=str(value))
    config.limits.check(where)
    return config
