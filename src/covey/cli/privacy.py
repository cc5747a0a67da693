"""``covey privacy``: what a SPEC promises, the noise that a promise needs, and what a population has spent."""

from pathlib import Path

import click

from covey.cli.options import json_option
from covey.cli.output import print_guarantee, print_table, write_json

__all__ = ["command"]


@click.group("privacy")
def command() -> None:
    """Account for differential privacy; docs/privacy.md explains every figure."""


@command.command(
    epilog="""\b
Examples:
  covey privacy account gaussian:clip=0.5,noise=1.2 --rounds 500 --cohort 1000 --population 1000000
  covey privacy account discrete-gaussian:clip=0.03,epsilon=10 --rounds 1500 --cohort 100 --population 3400
  covey privacy account tree:clip=1,noise=7,max_participation=6,min_separation=313,delta=1e-10 --rounds 2000 \\
      --cohort 6500 --population 10000000"""
)
@click.argument("spec", metavar="SPEC")
@click.option("--rounds", type=int, required=True, metavar="R", help="How many sums are opened.")
@click.option("--cohort", type=int, required=True, metavar="M", help="Devices whose updates make a round.")
@click.option("--population", type=int, required=True, metavar="N", help="How many devices there are.")
@click.option("--parameters", type=int, default=1_000_000, show_default=True, metavar="D", help="Size of the model.")
@click.option("--compression", metavar="SPEC", help="A ring that sends a part: hd|subsample:0.125|ring:20:1000:clip.")
@click.option("--min-survivors", type=int, metavar="S", help="The fewest devices in a sum; 70 % of M unless told.")
@click.option("--selected", type=int, metavar="M", help="The most devices selected for a sum; 130 % of M unless told.")
@json_option
def account(
    spec: str,
    rounds: int,
    cohort: int,
    population: int,
    parameters: int,
    compression: str | None,
    min_survivors: int | None,
    selected: int | None,
    json_file: str | None,
) -> None:
    """Print epsilon for a SPEC with its assumptions; with epsilon=TARGET in it, the noise that keeps it.

    SPEC is a mechanism and its settings, as `gaussian:clip=0.5,noise=1.2`.
    """
    import math

    from covey.compression.codec import codec_for
    from covey.privacy.guarantee import guarantee_of
    from covey.privacy.spec import Setting, parse_spec
    from covey.recipes.private import sent_by
    from covey.types.errors import PrivacySpecError, UsageError

    for flag, value in (("--rounds", rounds), ("--cohort", cohort), ("--population", population)):
        if value < 1:
            raise UsageError(flag, expected="at least 1", got=str(value))
    if parameters < 1:
        raise UsageError("--parameters", expected="at least 1", got=str(parameters))
    if cohort > population:
        raise UsageError("--cohort", expected=f"at most the population, {population}", got=str(cohort))
    parsed = parse_spec(spec)
    if parsed is None:
        raise PrivacySpecError("SPEC", expected="a mechanism", got="none", hint="without noise there is no epsilon")
    setting = Setting(
        cohort=cohort,
        min_survivors=math.ceil(0.7 * cohort) if min_survivors is None else min_survivors,
        num_selected=math.ceil(1.3 * cohort) if selected is None else selected,
        rounds=rounds,
        population=population,
        dim=parameters,
    )
    if compression is not None:
        setting = sent_by(codec_for(compression, "plain", 1, noised=True), setting, [[parameters]])
    mechanism = parsed.resolve(setting)
    guarantee = guarantee_of(mechanism, setting.dim, rounds, private=True)
    if json_file:
        write_json(guarantee, json_file)
    if json_file != "-":
        print_guarantee(guarantee)


@command.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.argument("population", metavar="POPULATION")
@click.option("--delta", type=float, default=1e-6, show_default=True, metavar="X", help="At which epsilon is told.")
def ledger(directory: Path, population: str, delta: float) -> None:
    """Print what a population has spent: every charge of its privacy ledger, and epsilon for all of them.

    DIR is the server's data directory, the one that holds server.db.
    """
    from covey.privacy.accounting import epsilon
    from covey.privacy.ledger import decode_loss, spent_by
    from covey.storage.sqlite import SqliteStorage
    from covey.types.errors import NotFoundError, UsageError

    if not (directory / "server.db").is_file():
        raise UsageError("DIR", expected="a directory with server.db", got=str(directory))
    if not 0 < delta < 1:
        raise UsageError("--delta", expected="above 0 and below 1", got=f"{delta:g}")
    storage = SqliteStorage(directory, is_own=False)  # its server may be running
    try:
        if storage.load(population) is None:
            raise NotFoundError("population", expected="one of this server", got=population)
        charges = storage.privacy_charges(population)
        spent = spent_by(storage.privacy_spent(population))
    finally:
        storage.close()
    if charges:
        rows = [
            (str(c.round), str(c.phase), c.plan[:12], str(c.times), type(decode_loss(c.loss)).__name__[:-4].lower())
            for c in charges
        ]
        print_table([("round", "phase", "plan", "times", "loss"), *rows], right=(0, 1, 3))
    click.echo(f"{len(charges)} charges; epsilon {epsilon(spent, delta):.4g} at delta {delta:.2g}, over all plans")
