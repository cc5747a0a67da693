"""``covey release``: what a population has released, a release as a file, and the owner's word for the release key."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from covey.cli.admin import admin_options, connected, url_of
from covey.cli.options import file_path, read_file
from covey.cli.output import bytes_text, print_table, write_file, write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from covey.device.transport import HttpTransport
    from covey.plans.release import Release
    from covey.wire.messages import BlobRef

__all__ = ["command"]

T = TypeVar("T")

_MAX_HISTORY_BYTES = 64 << 20


def _whose(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whose releases; :func:`_found` reads them."""
    options = [
        click.option("--server", metavar="URL", help="The server's address, https://host:port."),
        click.option("--population", metavar="P", help="Whose releases."),
        click.option("--ca", type=file_path, metavar="FILE", help="The authority to trust; the system's unless told."),
        click.option(
            "--dir", "directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="The server's directory: says the three above, on the server's machine.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _found(
    server: str | None, population: str | None, ca: Path | None, directory: Path | None
) -> "tuple[HttpTransport, str]":
    """Return a connection and the population. Raises UsageError."""
    from covey.server.config import load_config
    from covey.types.errors import UsageError

    if directory is not None:
        population = population or load_config(directory / "server.toml").population
        server, ca = server or url_of(directory), ca or directory / "authority" / "ca.pem"
    if server is None or population is None:
        missing = "--server URL" if server is None else "--population P"
        raise UsageError(missing, expected="it, or --dir DIR on the server's machine", got="neither")
    return _transport(server, ca), population


@click.group("release")
def command() -> None:
    """List, export and roll back releases, and delegate their signing; docs/releases.md explains them."""


@command.command("list")
@_whose
@click.option("--json", "json_file", metavar="FILE", help="Write all as one JSON object; - is stdout.")
def list_(json_file: str | None, **whose: Any) -> None:
    """Show every release, and every candidate with what became of it and why."""
    from covey.server.releases import ReleaseHistory

    transport, population = _found(**whose)
    found = _get(transport, f"/v1/populations/{population}/releases", ReleaseHistory)
    if json_file:
        write_json(found, json_file)
    if json_file == "-":
        return
    if not found.releases and not found.candidates:
        click.echo(f"population {population!r} has released nothing, and no checkpoint has stood for release yet")
    if found.releases:
        rows = [(str(r.version), r.checkpoint[:12], bytes_text(r.num_bytes), _time(r.created_at), _from(r))
                for r in found.releases]  # fmt: skip
        print_table([("version", "checkpoint", "size", "released", ""), *rows], right=(0, 2))
    if found.candidates:
        click.echo("candidates:")
        lines = [
            (
                str(c.round), c.checkpoint[:12], str(c.cohort), c.status, c.reason or "-",
                f"{c.difference:+.4g}, limit {c.limit:+.4g} over {c.compared}" if c.compared else "-",
            )
            for c in found.candidates
        ]  # fmt: skip
        print_table([("round", "checkpoint", "devices", "status", "reason", "worse by"), *lines], right=(0, 2))


@command.command()
@_whose
@click.option("--owner-key", type=file_path, required=True, metavar="FILE", help="The owner's public key.")
@click.option("--version", type=int, metavar="N", help="Which release; the newest unless told.")
@click.option("--format", "kind", type=click.Choice(["safetensors", "onnx"]), default="safetensors", show_default=True)
@click.option("-o", "--out", required=True, type=file_path, metavar="FILE", help="Where the model goes.")
def export(owner_key: Path, version: int | None, kind: str, out: Path, **whose: Any) -> None:
    """Fetch a release, verify it as a device does, and write its model as a file.

    An onnx file is the plan's own predict graph with the parameters in it.
    """
    import time

    from covey.plans.export import onnx_bytes, safetensors_bytes
    from covey.plans.lint import lint_plan
    from covey.plans.plan import MAX_PLAN_BYTES, unpack_plan
    from covey.plans.release import verify_release
    from covey.plans.signing import load_public_key
    from covey.server.releases import ReleaseHistory
    from covey.types.errors import BlobHashError, NotFoundError
    from covey.types.tensors import sha256_hex, unpack_tensors
    from covey.wire.messages import BlobRef

    key = load_public_key(read_file(owner_key, "--owner-key"), f"--owner-key {owner_key}")
    transport, population = _found(**whose)
    releases = _get(transport, f"/v1/populations/{population}/releases", ReleaseHistory).releases
    wanted = [r for r in releases if version in (None, r.version)]
    if not wanted:
        raise NotFoundError("release", expected=f"version {version}" if version else "one", got="none", hint=_LIST)
    release = wanted[-1]
    verify_release(key, release, population=population, now_s=time.time(), newest_seen=0)
    reference = BlobRef(sha256=release.plan, num_bytes=MAX_PLAN_BYTES, path=f"/v1/plans/{release.plan}")
    plan = unpack_plan(_read(transport, reference), expected_hash=release.plan)
    lint_plan(plan)
    reference = BlobRef(
        sha256=release.checkpoint, num_bytes=release.num_bytes, path=f"/v1/checkpoints/{release.checkpoint}"
    )
    data = _read(transport, reference)
    if sha256_hex(data) != release.checkpoint:
        raise BlobHashError("checkpoint", expected="the bytes that the release names", got="others")
    params = unpack_tensors(plan.manifest.params, data)
    notes = {
        "covey.population": population, "covey.version": str(release.version), "covey.plan": release.plan,
        "covey.checkpoint": release.checkpoint, "covey.task": plan.manifest.task,
    }  # fmt: skip
    made = onnx_bytes(plan, params, notes) if kind == "onnx" else safetensors_bytes(params, notes)
    write_file(out, made)
    click.echo(f"{out}: {bytes_text(len(made))}, version {release.version} of population {population!r}, verified")


@command.command()
@click.argument("version", type=int)
@admin_options
def rollback(version: int, as_json: bool, **where: Any) -> None:
    """Publish the checkpoint of an earlier VERSION again, as a new version: devices never go backwards."""
    from covey.plans.release import Release
    from covey.wire.administration import ReleaseWanted

    with connected(**where) as client:
        made = client.post("/releases", ReleaseWanted(version=version), Release)
    if as_json:
        write_json(made, "-")
        return
    click.echo(f"version {made.version} of population {made.population!r} has the checkpoint of version {version}")


@command.command()
@click.argument("delegation", type=file_path)
@click.option("--sign-with", type=file_path, required=True, metavar="KEY", help="The owner's private key.")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it holds from now.")
@click.option("--new-key", type=file_path, metavar="FILE", help="Make a new release key in FILE and delegate to it.")
@click.option("--population", metavar="P", help="With --new-key: for whom.")
def delegate(delegation: Path, sign_with: Path, days: int, new_key: Path | None, population: str | None) -> None:
    """Renew a DELEGATION file: the same population and release key, until a later day. The owner does this.

    With --new-key and --population, for a server that has none or whose key was stolen, the file is made anew; the new
    key and the DELEGATION file then go into the server's directory.
    """
    import time

    from covey.plans.release import decode_delegation
    from covey.plans.release import delegate as sign_delegation
    from covey.plans.signing import load_private_key
    from covey.types.errors import UsageError

    owner = load_private_key(read_file(sign_with, "--sign-with"), f"--sign-with {sign_with}")
    if (new_key is None) != (population is None):
        raise UsageError("--new-key and --population", expected="both or neither", got="one")
    if new_key is not None and population is not None:
        key = _new_release_key(new_key)
    else:
        old = decode_delegation(read_file(delegation, "delegation"))
        key, population = _release_key(old.release_key), old.population
    made = sign_delegation(owner, population, key, int(time.time()) + days * 86_400)
    write_file(delegation, msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    click.echo(f"{delegation}: population {population!r}, until {_time(made.expires_at)}")


def _release_key(text: str) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from covey.types.errors import ReleaseRefusedError

    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError as e:
        raise ReleaseRefusedError("delegation: release_key", expected="an Ed25519 key", got="something else") from e


def _new_release_key(path: Path) -> "Ed25519PublicKey":
    """Make a release key in a new file that only its owner can read."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from covey.plans.signing import private_key_pem
    from covey.server.authority import write_private
    from covey.types.errors import UsageError

    key = Ed25519PrivateKey.generate()
    try:
        write_private(path, private_key_pem(key))
    except FileExistsError as e:
        raise UsageError("--new-key", expected="a new file", got=f"{path}, which exists") from e
    return key.public_key()


_LIST = "`covey release list` shows what there is"


def _transport(server: str, ca: Path | None) -> "HttpTransport":
    from covey.device.transport import HttpTransport

    return HttpTransport(server, ca)


def _get(transport: "HttpTransport", path: str, kind: type[T]) -> T:
    from covey.types.errors import WireError
    from covey.wire.messages import BlobRef

    data = _read(transport, BlobRef(sha256="", num_bytes=_MAX_HISTORY_BYTES, path=path))
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        raise WireError("releases", expected="an answer of this protocol", got=str(e)[:200]) from e


def _read(transport: "HttpTransport", reference: "BlobRef") -> bytes:
    """Read a body of at most the size that was told: a server cannot fill the memory."""
    from covey.types.errors import TooLargeError

    data = bytearray()
    for chunk in transport.fetch(reference, ""):
        data += chunk
        if len(data) > reference.num_bytes:
            raise TooLargeError("answer", expected=f"at most {reference.num_bytes} bytes", got="more")
    return bytes(data)


def _time(seconds: int) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _from(release: "Release") -> str:
    return f"version {release.rollback_of} again" if release.rollback_of else ""
