"""``covey attest``: what the application's backend does to vouch for a device, by hand."""

import time
from pathlib import Path

import click

from covey.cli.options import file_path, read_file

__all__ = ["command"]


@click.group("attest")
def command() -> None:
    """Vouch for devices: tokens that the server and the enrolment authority accept."""


@command.command()
@click.argument("file", metavar="FILE", type=file_path)
def key(file: Path) -> None:
    """Make a signing key in FILE, for the application's backend, and its public half in FILE.pub."""
    from covey.plans.signing import generate_owner_key, private_key_pem, public_key_pem
    from covey.server.authority import write_private
    from covey.types.errors import UsageError

    public = file.with_name(f"{file.name}.pub")
    made = generate_owner_key()
    try:
        write_private(file, private_key_pem(made))
    except FileExistsError as e:
        raise UsageError(f"file {file}", expected="a new one", got="one that exists") from e
    public.write_bytes(public_key_pem(made.public_key()))
    click.echo(f"{file}: keep it on the backend; {public}: for the server and the authority")


@command.command()
@click.option("--key", "key_file", required=True, type=file_path, metavar="FILE", help="The backend's signing key.")
@click.option("--population", required=True, metavar="P", help="Whom the device may join.")
@click.option("--audience", required=True, type=click.Choice(["server", "authority"]), help="Who will be shown it.")
@click.option("--expires-in", type=int, default=86_400, show_default=True, metavar="S", help="Seconds from now.")
@click.option("--count", type=int, default=1, show_default=True, metavar="N", help="How many, one on a line.")
def token(key_file: Path, population: str, audience: str, expires_in: int, count: int) -> None:
    """Print tokens. To the server a token is one device, for as long as it lasts; to the authority, one certificate."""
    from covey.admission.tokens import issue_token
    from covey.plans.signing import load_private_key
    from covey.types.errors import UsageError

    if expires_in < 1 or count < 1:
        raise UsageError("--expires-in, --count", expected="at least 1", got=f"{expires_in}, {count}")
    signer = load_private_key(read_file(key_file, "--key"), f"--key {key_file}")
    expires_at = int(time.time()) + expires_in
    for _ in range(count):
        click.echo(issue_token(signer, audience=audience, population=population, expires_at=expires_at))
