"""Options that several commands share: how a recipe is trained, and where a message goes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.algorithms.registry import parse_algorithm
from covey.cli.files import file_path, read_file
from covey.recipes.recipe import RECIPES, Recipe, Settings
from covey.types.errors import UsageError

if TYPE_CHECKING:
    from covey.recipes.prepare import Prepared

__all__ = [
    "active_option",
    "authority_key_option",
    "authority_named",
    "devices_option",
    "file_path",
    "json_option",
    "population_options",
    "privacy_option",
    "promised",
    "read_file",
    "recipe_argument",
    "report_option",
    "settings_from",
    "split_options",
    "training_options",
]

_NAMES = ", ".join(RECIPES)

recipe_argument = click.argument("recipe", metavar="RECIPE")

json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the results as one JSON object; - is stdout."
)

privacy_option = click.option(
    "--privacy", metavar="SPEC", help="Differential privacy, as gaussian:clip=0.5,noise=1; docs/privacy.md."
)

devices_option = click.option(
    "--devices", type=int, metavar="N", help="With --privacy: how many devices the population has."
)


report_option = click.option(
    "--report", "report_file", type=file_path, metavar="FILE", help="Write a page with curves: one file, no network."
)

_BEHAVIOUR = [
    click.option("--dropout", type=float, metavar="P", help="Probability that a selected device gives up (0)."),
    click.option(
        "--availability", metavar="TRACE", help="always, diurnal:swing=4,hours=8, intermittent:on=0.2,slot=600."
    ),
    click.option("--speed-spread", type=float, metavar="S", help="Spread of the logarithm of devices' speeds (0)."),
    click.option("--seconds-per-step", type=float, metavar="X", help="Virtual seconds of the median device (0)."),
    click.option(
        "--down-mbit-per-s", type=float, metavar="X", help="Download of the median device, virtual; 0: no time (0)."
    ),
    click.option("--up-mbit-per-s", type=float, metavar="X", help="Upload of the median device; 0: no time (0)."),
    click.option("--network-spread", type=float, metavar="S", help="Spread of the logarithm of bandwidths (0)."),
    click.option(
        "--report-timeout", "report_timeout_s", type=float, metavar="SECONDS", help="Virtual, for a round (600)."
    ),
]
"""How the devices of a simulation behave."""


def split_options(typed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what was typed: how devices behave, how a simulation runs, and how the recipe is trained."""
    from covey.simulation.population import DevicePopulation
    from covey.simulation.run import SimulationOptions

    values = {k: v for k, v in typed.items() if v is not None}
    named = [{f.name for f in dataclasses.fields(kind)} for kind in (DevicePopulation, SimulationOptions)]
    behaviour, run = ({k: v for k, v in values.items() if k in names} for names in named)
    return behaviour, run, {k: v for k, v in values.items() if k not in behaviour and k not in run}


def population_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how simulated devices behave."""
    for option in reversed(_BEHAVIOUR):
        command = option(command)
    return command


active_option = click.option(
    "--active", is_flag=True, help="Secure aggregation that holds against a server that lies to devices."
)

authority_key_option = click.option(
    "--authority-key", type=file_path, metavar="FILE", help="With --active: the enrolment authority's authority.pub."
)


def authority_named(active: bool, key_file: Path | None, *, plain: bool) -> str:
    """Return the authority's key in hex, or nothing if the server is trusted to follow the protocol.

    Raises:
        UsageError: one of ``--active`` and ``--authority-key`` without the other, or both in plain mode.
    """
    from covey.plans.signing import load_public_key

    if not active and key_file is None:
        return ""
    if plain or not active or key_file is None:
        raise UsageError(
            "--active",
            expected="--authority-key FILE beside it, and a secure plan",
            got="another combination",
            hint="`covey authority init DIR --population P` makes an authority, on a machine other than the server's",
        )
    key = load_public_key(read_file(key_file, "--authority-key"), f"--authority-key {key_file}")
    return key.public_bytes_raw().hex()


class _BatchSize(click.ParamType[Any]):
    name = "B|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.lower() in ("inf", "infinity", "∞"):
            return "inf"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor inf", param, ctx)


_OPTIONS = [
    click.option("--algorithm", metavar="NAME", help="fedavg, fedprox:mu=0.1, fedadam ...; docs/algorithms.md."),
    click.option("--cohort", type=int, metavar="M", help="Devices whose updates make a round."),
    click.option("--epochs", type=int, metavar="E", help="Passes over a device's examples in a round."),
    click.option("--batch", "batch_size", type=_BatchSize(), help="Examples in a step; inf: all of a device's."),
    click.option("--lr", type=float, metavar="X", help="Learning rate."),
    click.option("--lr-decay", type=float, metavar="X", help="Multiplies the learning rate from round to round (1)."),
    click.option("--server-lr", type=float, metavar="X", help="Learning rate of the server's step."),
    click.option("--optimizer", metavar="NAME", help="The devices' own: sgd, momentum or adam."),
    click.option("--max-steps", type=int, metavar="N", help="The most local steps in a round."),
    click.option(
        "--partition",
        metavar="P",
        help="iid, two-class, dirichlet:ALPHA, resample:N, writer or role, as the data allow.",
    ),
    click.option("--compression", metavar="SPEC", help="How updates are encoded, as 'hd|eden:2'; docs/compression.md."),
    click.option("--download", metavar="SPEC", help="How checkpoints are encoded, as quantize:8; docs/compression.md."),
    click.option("--clients", "num_clients", type=int, metavar="N", help="How many devices the data are dealt to."),
]


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that replace single values of a recipe's settings."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_from(recipe: Recipe, values: dict[str, Any]) -> Settings:
    """Return the recipe's settings with what was typed in their place; unset options are None in ``values``.

    The learning rate that was not typed is the one that the recipe names for the algorithm.
    """
    typed = {k: v for k, v in values.items() if v is not None}
    if typed.get("batch_size") == "inf":
        typed["batch_size"] = None
    algorithm = parse_algorithm(typed.get("algorithm", recipe.settings.algorithm)).name
    if "lr" not in typed and algorithm in recipe.lrs:
        typed["lr"] = recipe.lrs[algorithm]
    return dataclasses.replace(recipe.settings, **typed)


def promised(prepared: "Prepared", text: str, cohort: int, rounds: int, devices: int | None) -> "Prepared":
    """Return the plan with the promise of a ``--privacy SPEC`` written into it, and print the promise.

    Args:
        prepared: the plan without; its terms say how few and how many devices may be in a sum.
        text: the SPEC.
        cohort: the goal of a round.
        rounds: how many are planned.
        devices: how many devices the population has.

    Raises:
        UsageError: a SPEC that cannot be read, or without rounds or devices.
        PrivacyError: a promise that cannot be kept.
    """
    from covey.cli.output import print_guarantee
    from covey.privacy.guarantee import guarantee_of
    from covey.privacy.spec import Setting, parse_spec
    from covey.recipes.private import with_privacy

    spec, terms = parse_spec(text), prepared.plan.manifest.privacy
    if spec is None:
        return prepared
    if devices is None or min(rounds, devices) < 1:
        raise UsageError("--privacy", expected="--rounds R and --devices N beside it, at least 1", got="one missing")
    setting = Setting(cohort, terms.min_cohort, terms.most_in_sum, rounds, devices, dim=0)
    private, mechanism = with_privacy(prepared, spec, setting)
    print_guarantee(guarantee_of(mechanism, private.plan.manifest.num_opened, rounds, private=True))
    return private
