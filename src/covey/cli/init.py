"""``covey init``: everything that a server needs to serve a recipe, and the owner's keys beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.options import (
    active_option,
    authority_key_option,
    authority_named,
    devices_option,
    privacy_option,
    promised,
    settings_from,
    training_options,
)
from covey.cli.output import StatusLine

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from covey.plans.manifest import PrivacyTerms
    from covey.plans.plan import Plan
    from covey.recipes.prepare import Prepared

__all__ = ["command", "secure_terms", "write_population"]

_LEAST_SECURE = 3
_OVER_SELECTION = 1.3
_GROUP_SIZE = 100
"""Up to here everybody shares keys with everybody, which costs a device little."""
_DELEGATED_DAYS = 90
_MAX_WEIGHT = 4000
"""A larger cap would leave too few bits behind the point in a ring of 32 bits."""

_CONFIG = """\
# covey serve --dir {directory}
population = "{population}"
host = "{host}"
port = {port}            # 0 takes a free one
# enrolment = "token"   # only devices of your application: docs/admission.md

[round]
goal = {goal}              # reports that close a round
over_selection = 1.3    # select more, because some devices drop out
min_fraction = 0.7      # of the goal, enough at the deadline
report_timeout_s = {report_timeout_s:g}
step_timeout_s = {step_timeout_s:g}     # of each step of a secure sum, for whoever vanished in it
max_rounds = {max_rounds}          # 0: go on for ever
hyper = {{ {hyper} }}
lr_decay = {lr_decay!r}          # the learning rate is multiplied by it from round to round

[pace]
# Soon, for a federation of a few devices on one's own machines; leave the table out for phones: 60 s to a day.
least_s = 0.2
most_s = 60.0

[release]
every = {every}              # committed rounds between two candidates; 0: nothing is released
evaluate = {evaluate}         # {evaluate_why}
min_devices = {min_devices}       # that must have compared a candidate with the release before it
margin = 0.01           # of the loss, that does not count as worse
"""


@click.command(
    "init",
    epilog="""\b
Afterwards, in two terminals:
  covey serve --dir DIR/server
  covey device run --server https://localhost:8443 --population P --owner-key DIR/owner/owner.pub \\
      --ca DIR/server/authority/ca.pem --home my-device --min-cohort 3""",
)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--recipe", required=True, help="A recipe's name, or a path to your own Python file.")
@click.option("--population", help="Name of the population; the recipe's name unless told.")
@click.option("--min-cohort", type=int, default=100, show_default=True, help="The fewest devices in a sum.")
@click.option(
    "--plain",
    is_flag=True,
    help="Without secure aggregation: the server could look at one update, though it keeps none.",
)
@active_option
@authority_key_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8443, show_default=True, help="Port; 0 takes a free one.")
@click.option("--rounds", "max_rounds", type=int, default=0, show_default=True, help="Stop after so many; 0: never.")
@privacy_option
@devices_option
@training_options
def command(
    directory: Path,
    recipe: str,
    population: str | None,
    min_cohort: int,
    plain: bool,
    active: bool,
    authority_key: Path | None,
    host: str,
    port: int,
    max_rounds: int,
    privacy: str | None,
    devices: int | None,
    **training: Any,
) -> None:
    """Make DIR/owner (the owner's keys) and DIR/server (plan, signature, first model, configuration).

    Devices trust whoever holds DIR/owner/owner.key: keep that folder off the server. A sum over few devices says much
    about each of them: lower --min-cohort only where that is no harm, as in a trial with devices of your own.
    """
    from covey.privacy.spec import is_noised
    from covey.recipes.recipe import load_recipe

    authority = authority_named(active, authority_key, plain=plain)
    found = load_recipe(recipe)
    settings = settings_from(found, training)
    status = StatusLine()
    status.show("building and checking the plan ...")
    made = write_population(
        directory,
        recipe,
        settings,
        population=population or found.name,
        min_cohort=min_cohort,
        secure=not plain,
        authority=authority,
        host=host,
        port=port,
        max_rounds=max_rounds,
        report_timeout_s=600.0,
        noised=is_noised(privacy),
        promise=lambda prepared: (
            prepared if privacy is None else promised(prepared, privacy, settings.cohort, max_rounds, devices)
        ),
    )
    status.clear()
    mode = "plain mode: updates are not masked" if plain else "secure aggregation"
    mode += " against an active server" if active else ""
    click.echo(f"plan {made[:12]} for population {population or found.name!r}, signed; {mode}")
    click.echo(f"  {directory}/owner    the owner's keys: keep owner.key secret, give owner.pub to devices")
    click.echo(f"  {directory}/server   covey serve --dir {directory}/server")


def secure_terms(min_cohort: int, settings: Any, authority: str = "") -> "PrivacyTerms":
    """Return the terms of a secure population whose rounds have ``settings.cohort`` devices.

    With an ``authority``, the hex of an enrolment authority's key, they hold against an active server.

    Raises:
        UsageError: a cohort in which nobody is hidden.
        SecAggParameterError: numbers that every device would refuse.
    """
    import math

    from covey.plans.manifest import PrivacyTerms, SecureTerms
    from covey.secagg import Mode, Session
    from covey.types.errors import UsageError
    from covey.types.segments import Segment

    if min_cohort < _LEAST_SECURE:
        raise UsageError(
            "--min-cohort",
            expected=f"at least {_LEAST_SECURE}: of two devices each would learn the other's update from the sum",
            got=str(min_cohort),
            hint="more devices, or --plain for a trial with devices of your own",
        )
    selected = math.ceil(settings.cohort * _OVER_SELECTION)
    size = max(min_cohort, min(selected, _GROUP_SIZE))
    secure = SecureTerms(group_size=size, mode="active" if authority else "honest-but-curious", authority=authority)
    # What every device will compute for itself; terms that it would refuse are not worth a plan.
    Session.plan(
        Mode(secure.mode), [Segment("any", 1, 1, size)], n_max=size, min_survivors=min_cohort,
        adversary=secure.adversary, dropout=secure.dropout, population="any", round_id="any",
        authority=bytes.fromhex(authority),
    )  # fmt: skip
    weight = settings.max_examples if settings.max_steps is None else settings.max_steps * (settings.batch_size or 1)
    return PrivacyTerms(
        mode="secure",
        min_cohort=min_cohort,
        n_max=max(1000, 2 * settings.cohort),
        max_weight=max(1, min(weight, settings.max_examples, _MAX_WEIGHT)),
        secure=secure,
    )


def write_population(
    directory: Path,
    source: str,
    settings: Any,
    *,
    population: str,
    min_cohort: int,
    secure: bool,
    authority: str = "",
    host: str,
    port: int,
    max_rounds: int,
    report_timeout_s: float,
    step_timeout_s: float = 30.0,
    noised: bool = False,
    candidate_every: int = 10,
    promise: "Callable[[Prepared], Prepared]" = lambda prepared: prepared,
) -> str:
    """Write the two folders and return the plan's hash.

    ``promise`` writes differential privacy into the plan; ``noised`` says whether it does.

    Raises:
        UsageError: the folder is already in use, or a cohort below ``min_cohort``.
    """
    import math

    from covey.device.files import storage_errors
    from covey.plans.manifest import PrivacyTerms
    from covey.plans.signing import generate_owner_key, private_key_pem, public_key_pem, sign_plan
    from covey.recipes.prepare import prepare
    from covey.recipes.recipe import load_recipe
    from covey.server.authority import write_private
    from covey.types.errors import UsageError

    owner, server = directory / "owner", directory / "server"
    if owner.exists() or server.exists():
        raise UsageError(f"directory {directory}", expected="a new one", got="one with a population in it")
    if math.ceil(settings.cohort * 0.7) < min_cohort:
        raise UsageError(
            "--cohort",
            expected=f"at least {math.ceil(min_cohort / 0.7)}, because 70 % of it must reach --min-cohort",
            got=str(settings.cohort),
            hint="raise --cohort, or lower --min-cohort for a trial with devices of your own",
        )
    recipe = load_recipe(source)
    dataset = recipe.data(settings, 0)
    terms = PrivacyTerms(min_cohort=min_cohort, n_max=max(1000, 2 * settings.cohort, _most_in_buffer(settings)))
    if secure:
        terms = secure_terms(min_cohort, settings, authority)
    prepared = promise(prepare(recipe, source, settings, terms, dataset, noised=noised))
    key, evaluated = generate_owner_key(), prepared.plan.manifest.privacy.noise is None
    with storage_errors(f"directory {directory}"):
        owner.mkdir(parents=True)
        server.mkdir()
        write_private(owner / "owner.key", private_key_pem(key))
        (owner / "owner.pub").write_bytes(public_key_pem(key.public_key()))
        (server / "owner.pub").write_bytes(public_key_pem(key.public_key()))
        (server / "plan.covey").write_bytes(prepared.plan_bytes)
        (server / "plan.sig").write_text(sign_plan(key, population, prepared.plan.hash).hex())
        (server / "checkpoint.bin").write_bytes(prepared.checkpoint)
        _write_release_files(server, key, population, prepared.plan)
        (server / "server.toml").write_text(
            _CONFIG.format(
                directory=server,
                population=population,
                host=host,
                port=port,
                goal=settings.cohort,
                report_timeout_s=report_timeout_s,
                step_timeout_s=step_timeout_s,
                max_rounds=max_rounds,
                every=candidate_every,
                evaluate=str(evaluated).lower(),
                evaluate_why="compare with the release before it" if evaluated else "devices send no metrics here",
                min_devices=max(3, min(30, math.floor(settings.cohort * 0.7))),
                lr_decay=settings.lr_decay,
                hyper=f"lr = {settings.lr!r}" if any(h.name == "lr" for h in prepared.plan.manifest.hyper) else "",
            )
        )
    return prepared.plan.hash


def _most_in_buffer(settings: Any) -> int:
    """Return how many updates one sum of an asynchronous algorithm may hold; 0 for one that has rounds."""
    from covey.algorithms.fedbuff import asynchrony
    from covey.algorithms.registry import parse_algorithm

    choice = parse_algorithm(settings.algorithm)
    if choice.name != "fedbuff":
        return 0
    most: int = settings.cohort + asynchrony(choice.parameters, settings.cohort).concurrency
    return most


def _write_release_files(server: Path, owner: "Ed25519PrivateKey", population: str, plan: "Plan") -> None:
    """Write what a server publishes with: its release key, the owner's delegation, the evaluation plan."""
    import time

    import msgspec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from covey.plans.evaluation import evaluation_plan
    from covey.plans.release import delegate
    from covey.plans.signing import private_key_pem, sign_plan
    from covey.server.authority import write_private
    from covey.server.release_key import DELEGATION_FILE, KEY_FILE
    from covey.types.tensors import sha256_hex

    key = Ed25519PrivateKey.generate()
    word = delegate(owner, population, key.public_key(), int(time.time()) + _DELEGATED_DAYS * 86_400)
    write_private(server / KEY_FILE, private_key_pem(key))
    (server / DELEGATION_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(word)) + b"\n")
    if plan.manifest.privacy.noise is None:  # otherwise devices send no metrics, and there is nothing to compare
        data = evaluation_plan(plan)
        (server / "evaluation.covey").write_bytes(data)
        (server / "evaluation.sig").write_text(sign_plan(owner, population, sha256_hex(data)).hex())
