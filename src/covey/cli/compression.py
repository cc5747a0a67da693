"""``covey compression``: try specs on real updates, and size the ring of the secure path."""

from typing import Any

import click

from covey.cli.options import json_option, settings_from, training_options
from covey.cli.output import bytes_text, print_table, write_json

__all__ = ["command"]

_ON = click.option("--on", "recipe", required=True, metavar="RECIPE", help="Whose devices train; a name or a path.")
_DEVICES = click.option("--devices", type=int, default=3, show_default=True, help="How many devices train.")
_SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of the checkpoint and the shuffling.")


@click.group("compression")
def command() -> None:
    """Try how updates are compressed. Specs: docs/compression.md."""


@command.command(
    "try",
    epilog="""\b
Examples:
  covey compression try 'hd|eden:2' --on mnist-2nn
  covey compression try 'hd|eden:0.1' 'hd|uniform:6' 'topk:0.01|quantize:2' --on ./my_recipe.py --devices 5""",
)
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@_ON
@_DEVICES
@_SEED
@training_options
@json_option
def try_(specs: tuple[str, ...], recipe: str, devices: int, seed: int, json_file: str | None, **training: Any) -> None:
    """Encode real updates by each SPEC: bytes, error and time.

    Devices of RECIPE train for one session from its first checkpoint, in the runtime of a phone. `error` is the squared
    error of one device's update over its squared norm, `of the mean` that of the devices' mean.
    """
    from covey.compression.codec import codec_named
    from covey.recipes.recipe import load_recipe
    from covey.simulation.trial import Trial

    for spec in specs:
        codec_named(spec)  # a misspelt one is refused before anything trains
    found = load_recipe(recipe)
    trial = Trial(found, recipe, settings_from(found, training), devices=devices, seed=seed)
    results = [trial.run(spec) for spec in specs]
    if json_file:
        write_json(results, json_file)
    if json_file == "-":
        return
    rows = [("spec", "report", "fewer", "error", "of the mean", "encode", "decode", "unbiased", "secagg")]
    rows += [
        (
            r.spec,
            bytes_text(r.body_bytes),
            f"{r.float32_bytes / r.body_bytes:.1f}x",
            f"{r.error:.3g}",
            f"{r.mean_error:.3g}",
            f"{r.encode_ms:.1f} ms",
            f"{r.decode_ms:.1f} ms",
            "yes" if r.unbiased else "no",
            "sums" if r.composes_with_secagg else "no",
        )
        for r in results
    ]
    print_table(rows, right=(1, 2, 3, 4, 5, 6))
    r = results[0]
    click.echo(f"{r.devices} devices; without compression {bytes_text(r.float32_bytes)} a report")
    click.echo(f"norm of an update, times its weight: {r.norm:.4g}")
    if any(not r.composes_with_secagg for r in results):
        click.echo("without secagg the server could look at one update, though it stores none")


@command.command()
@_ON
@_DEVICES
@_SEED
@click.option("--n-max", type=int, required=True, metavar="N", help="The most devices selected for one sum.")
@click.option("--max-error", type=float, default=0.01, show_default=True, help="Squared, relative, per device.")
@click.option("--keep", type=float, default=1.0, show_default=True, metavar="P", help="Part of the values sent.")
@training_options
def ring(recipe: str, devices: int, seed: int, n_max: int, max_error: float, keep: float, **training: Any) -> None:
    """Choose the ring of the secure path for RECIPE, and say why.

    The norm is measured: a tenth above the largest of the devices' updates. Larger updates are clamped, not refused.
    """
    from covey.compression.ring import choose_ring
    from covey.recipes.recipe import load_recipe
    from covey.simulation.trial import Trial, update_norms
    from covey.types.errors import UsageError

    if n_max < 1 or not 0 < keep <= 1 or not max_error > 0:
        raise UsageError(
            "ring", expected="N >= 1, 0 < P <= 1 and an error above 0", got=f"{n_max}, {keep}, {max_error}"
        )
    found = load_recipe(recipe)
    trial = Trial(found, recipe, settings_from(found, training), devices=devices, seed=seed)
    norms = trial.norms()
    choice = choose_ring(trial.num_parameters, n_max, update_norms(norms), max_error=max_error, keep=keep)
    click.echo(f"norms of {devices} updates, times their weight: {', '.join(f'{n:.4g}' for n in norms)}")
    for reason in choice.reasons:
        click.echo(reason)
    subsample = "" if keep == 1 else f"subsample:{keep:g}|"
    click.echo(f"a report's body: {bytes_text(choice.path.num_bytes)}, of {bytes_text(4 * trial.num_parameters)}")
    path = choice.path
    click.echo(f"spec: hd|{subsample}ring:{path.ring_bits}:{n_max}:{path.norm:.4g}:{path.clamp_deviations:g}")
