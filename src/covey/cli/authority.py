"""``covey authority``: the enrolment authority, which certifies devices for sums against an active server."""

from pathlib import Path

import click

from covey.cli.options import file_path, read_file

__all__ = ["command"]

_CONFIG = """\
# covey authority serve {directory}
population = "{population}"
host = "{host}"
port = {port}            # 0 takes a free one
lifetime_s = 3600      # of a certificate
enrolment = "{enrolment}"
"""
_TOKENS = """
[attestation]
key = "attestation.pub"    # of the backend that signs tokens
"""

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group("authority")
def command() -> None:
    """Certify devices, so that no server can play them all. Run it on another machine than the server."""


@command.command()
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--population", required=True, metavar="P", help="Whose devices it certifies.")
@click.option("--attestation-key", type=file_path, metavar="FILE", help="Public key of the application's backend.")
@click.option("--open", "is_open", is_flag=True, help="Certify anybody: for a trial with devices of your own.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8444, show_default=True, help="Port; 0 takes a free one.")
def init(directory: Path, population: str, attestation_key: Path | None, is_open: bool, host: str, port: int) -> None:
    """Make DIR: a key that only the authority has, its configuration, and a certificate for HTTPS.

    Give DIR/authority.pub to `covey init --active` and to the application. Devices are certified if they show a token
    that the application's backend signed (`covey attest`).
    """
    from covey.plans.signing import generate_owner_key, load_public_key, private_key_pem, public_key_pem
    from covey.server.authority import ensure_authority, write_private
    from covey.types.errors import UsageError

    if (attestation_key is None) != is_open:
        raise UsageError("covey authority init", expected="either --attestation-key FILE or --open", got="both or none")
    if (directory / "authority.key").exists():
        raise UsageError(f"directory {directory}", expected="a new one", got="one with an authority in it")
    pem = b"" if attestation_key is None else read_file(attestation_key, "--attestation-key")
    if attestation_key is not None:
        load_public_key(pem, f"--attestation-key {attestation_key}")
    directory.mkdir(parents=True, exist_ok=True)
    ensure_authority(directory / "tls", sorted({"localhost", "127.0.0.1", "::1", host}))
    key = generate_owner_key()
    write_private(directory / "authority.key", private_key_pem(key))
    (directory / "authority.pub").write_bytes(public_key_pem(key.public_key()))
    config = _CONFIG.format(
        directory=directory, population=population, host=host, port=port, enrolment="open" if is_open else "token"
    )
    if pem:
        (directory / "attestation.pub").write_bytes(pem)
        config += _TOKENS
    (directory / "authority.toml").write_text(config)
    click.echo(f"authority {key.public_key().public_bytes_raw().hex()[:12]} for population {population!r}")
    click.echo(f"  {directory}/authority.pub   what the plan names and the application pins")
    click.echo(
        f"  {directory}/tls/ca.pem      what devices trust for its HTTPS; or put a certificate of your own there"
    )
    click.echo(f"  covey authority serve {directory}")


@command.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: for a parent that may die.")
def serve(directory: Path, stop_with_stdin: bool) -> None:
    """Serve over HTTPS until Ctrl-C. Nothing is written: what was certified is remembered in memory only."""
    from covey.authority.config import load_config
    from covey.authority.run import serve as run
    from covey.cli.pipes import terminate_with_stdin

    if stop_with_stdin:
        terminate_with_stdin()
    config = load_config(directory / "authority.toml")
    run(directory, config, lambda url: click.echo(f"certifying devices of population {config.population!r} on {url}"))
