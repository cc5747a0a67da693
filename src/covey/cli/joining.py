"""``covey device join|leave|install-service``: what an agent that serves all of a device's populations needs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.options import file_path, read_file

if TYPE_CHECKING:
    from covey.device.populations import Membership

__all__ = ["default_home", "install_service", "join", "leave", "membership", "terms"]

_FOLDER = click.Path(file_okay=False, path_type=Path)
_UNIT_NAME = "covey-device.service"

_UNIT = """\
[Unit]
Description=Covey: trains shared models while this computer is idle, charging and on an unmetered network

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=60
# 2 is a mistake in what was typed or joined, or another agent that runs: trying again does not help.
RestartPreventExitStatus=2
Nice=10
IOSchedulingClass=idle
CPUWeight=idle
NoNewPrivileges=yes
UMask=0077

[Install]
WantedBy=default.target
"""


def terms(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the device's owner accepts."""
    noise = click.option(
        "--min-noise", type=float, default=0.0, metavar="Z", help="The least sigma / clip of noise in a sum."
    )
    cohort = click.option(
        "--min-cohort", type=int, default=100, show_default=True, help="The fewest devices in an opened sum."
    )
    plain = click.option(
        "--accept-plain", is_flag=True, help="Accept that updates travel unmasked: the server could look at one."
    )
    authority = (
        click.option("--authority", metavar="URL", help="The enrolment authority: https://HOST:PORT"),
        click.option(
            "--authority-key", type=file_path, metavar="FILE", help="Whose certificates count: authority.pub."
        ),
        click.option("--authority-ca", type=file_path, metavar="FILE", help="For its HTTPS; the system's unless told."),
        click.option("--attestation", metavar="FILE|-", help="Tokens of the application's backend for the server."),
        click.option(
            "--authority-attestation", metavar="FILE|-", help="The same for the authority; one is used up an hour."
        ),
    )
    for option in (noise, cohort, plain, *reversed(authority)):
        function = option(function)
    return function


def default_home() -> Path:
    """Return where a device's state is kept unless told: the user's data directory."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "covey" / "device"


def membership(server: str, population: str, owner_key: Path, ca: Path | None, **accepted: Any) -> "Membership":
    """Return what was typed as a membership; ``accepted`` are the options of :func:`terms`.

    Raises:
        UsageError: files or numbers that mean nothing.
    """
    from covey.device.populations import Membership
    from covey.types.errors import UsageError

    if accepted["min_cohort"] < 1:
        raise UsageError("--min-cohort", expected="at least 1", got=str(accepted["min_cohort"]))
    if not 0 <= accepted["min_noise"] < float("inf"):
        raise UsageError("--min-noise", expected="a noise multiplier of at least 0", got=f"{accepted['min_noise']:g}")
    authority, authority_key = accepted["authority"], accepted["authority_key"]
    if (authority is None) != (authority_key is None):
        raise UsageError(
            "--authority",
            expected="URL and --authority-key FILE, both",
            got="one of them",
            hint="the key comes from the application by a trusted way, never from the server",
        )
    return Membership(
        population=population,
        server=server,
        owner_key=_key(owner_key, "--owner-key"),
        ca_file=_path(ca),
        accept_plain=accepted["accept_plain"],
        min_cohort=accepted["min_cohort"],
        min_noise=accepted["min_noise"],
        authority=authority or "",
        authority_key=_key(authority_key, "--authority-key") if authority_key else "",
        authority_ca=_path(accepted["authority_ca"]),
        attestation=_path(accepted["attestation"]),
        authority_attestation=_path(accepted["authority_attestation"]),
    )


def _key(file: Path, option: str) -> str:
    from covey.plans.signing import load_public_key

    return load_public_key(read_file(file, option), f"{option} {file}").public_bytes_raw().hex()


def _path(path: "Path | str | None") -> str:
    """Return an absolute path, or what stands for stdin, or for nothing."""
    if path is None or str(path) == "-":
        return str(path or "")
    return str(Path(path).absolute())


@click.command()
@click.option("--server", required=True, metavar="URL", help="https://HOST:PORT")
@click.option("--population", required=True, metavar="P", help="The population to take part in.")
@click.option("--owner-key", required=True, type=file_path, metavar="FILE", help="Whose plans it executes: owner.pub.")
@click.option("--ca", type=file_path, metavar="FILE", help="The authority to trust; the system's unless told.")
@click.option("--home", type=_FOLDER, metavar="DIR", help="State directory of the device.")
@terms
def join(
    server: str,
    population: str,
    owner_key: Path,
    ca: Path | None,
    home: Path | None,
    **accepted: Any,
) -> None:
    """Let this device take part in a population, on these terms; again, to change the terms.

    `covey device run` without --server serves every population that was joined. One that runs has to be started anew.
    """
    from covey.device.populations import Populations
    from covey.device.transport import tls_context
    from covey.types.errors import UsageError

    member = membership(server, population, owner_key, ca, **accepted)
    if "-" in (member.attestation, member.authority_attestation):
        raise UsageError(
            "covey device join", expected="tokens in a file", got="-", hint="stdin is gone when they are due"
        )
    tls_context(ca)  # a file that is none is told here, not at night
    member.attestations(), member.authorities(1)
    populations = Populations(home or default_home())
    populations.join(member)
    click.echo(f"{populations.path}: takes part in {population!r} at {server}")


@click.command()
@click.argument("population")
@click.option("--home", type=_FOLDER, metavar="DIR", help="State directory of the device.")
def leave(population: str, home: Path | None) -> None:
    """Take part in a population no more."""
    from covey.device.populations import Populations

    populations = Populations(home or default_home())
    populations.leave(population)
    click.echo(f"{populations.path}: takes no part in {population!r} any more")


@click.command("install-service")
@click.option("--home", type=_FOLDER, metavar="DIR", help="State directory of the device.")
@click.option("--assume", default="", metavar="LIST", help="Conditions to take for granted: idle,charging,unmetered.")
@click.option("--write", is_flag=True, help="Write it to the user's systemd directory instead of printing it.")
def install_service(home: Path | None, assume: str, write: bool) -> None:
    """Print a systemd user unit that runs the agent whenever this user's session does."""
    from covey.device.conditions.system import assumptions

    names = assumptions(assume)
    words = [sys.executable, "-m", "covey", "device", "run", "--home", str((home or default_home()).absolute())]
    words += ["--assume", ",".join(names)] if names else []
    unit = _UNIT.format(command=" ".join(map(_quoted, words)))
    if not write:
        click.echo(unit, nl=False)
        return
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = config / "systemd" / "user" / _UNIT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit)
    click.echo(f"{path}: written; start it with\n  systemctl --user enable --now {_UNIT_NAME}")


def _quoted(word: str) -> str:
    """Quote a word for systemd: % and $ mean something there, and a backslash escapes."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return f'"{word.replace(chr(34), chr(92) + chr(34))}"' if any(c in word for c in " \t'\"\\;") else word
