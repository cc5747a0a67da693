"""``covey device join|leave|install-service``: what an agent that serves all of a device's populations needs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.files import file_path, read_file

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
    url = click.option("--authority", metavar="URL", help="The enrolment authority: https://HOST:PORT")
    key = click.option(
        "--authority-key", type=file_path, metavar="FILE", help="Whose certificates count: authority.pub."
    )
    ca = click.option("--authority-ca", type=file_path, metavar="FILE", help="For its HTTPS; the system's unless told.")
    tokens = click.option("--attestation", metavar="FILE|-", help="Tokens of the application's backend for the server.")
    more = click.option(
        "--authority-attestation", metavar="FILE|-", help="The same for the authority; one is used up an hour."
    )
    for option in (more, tokens, ca, key, url, noise, cohort, plain):
        function = option(function)
    return function


def default_home() -> Path:
    """Return where a device's state is kept unless told: the user's data directory."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "covey" / "device"


def membership(
    server: str,
    population: str,
    owner_key: Path,
    ca: Path | None,
    *,
    accept_plain: bool,
    min_cohort: int,
    min_noise: float,
    authority: str | None,
    authority_key: Path | None,
    authority_ca: Path | None,
    attestation: str | None,
    authority_attestation: str | None,
) -> "Membership":
    """Return what was typed as a membership; the keywords are those of :func:`terms`.

    Raises:
        UsageError: files or numbers that mean nothing.
    """
    from covey.device.populations import Membership
    from covey.plans.signing import load_public_key
    from covey.types.errors import UsageError

    if min_cohort < 1:
        raise UsageError("--min-cohort", expected="at least 1", got=str(min_cohort))
    key = load_public_key(read_file(owner_key, "--owner-key"), f"--owner-key {owner_key}")
    if not 0 <= min_noise < float("inf"):
        raise UsageError("--min-noise", expected="a noise multiplier of at least 0", got=f"{min_noise:g}")
    return Membership(
        population=population,
        server=server,
        owner_key=key.public_bytes_raw().hex(),
        ca_file=_whole(ca),
        accept_plain=accept_plain,
        min_cohort=min_cohort,
        min_noise=min_noise,
        attestation=_whole(attestation),
        authority=authority or "",
        authority_key=_authority_key(authority, authority_key),
        authority_ca=_whole(authority_ca),
        authority_attestation=_whole(authority_attestation),
    )


def _authority_key(url: str | None, file: Path | None) -> str:
    from covey.plans.signing import load_public_key
    from covey.types.errors import UsageError

    if (url is None) != (file is None):
        raise UsageError(
            "--authority",
            expected="URL and --authority-key FILE, both",
            got="one of them",
            hint="the key comes from the application by a trusted way, never from the server",
        )
    if file is None:
        return ""
    return load_public_key(read_file(file, "--authority-key"), f"--authority-key {file}").public_bytes_raw().hex()


def _whole(path: Path | str | None) -> str:
    """Return a path that does not depend on where the agent is started; ``-`` stays what it is."""
    if path is None:
        return ""
    return "-" if str(path) == "-" else str(Path(path).absolute())


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
        raise UsageError("--attestation", expected="a file, which a later run can read", got="-")
    tls_context(ca)  # a file that is none is told here, not at night
    member.tokens()
    member.pinned_authority(member.authority_tokens())
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
