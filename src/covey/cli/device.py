"""``covey device``: a device in a terminal. Needs neither JAX nor any server package."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli.files import file_path, read_file
from covey.cli.joining import install_service, join, leave
from covey.cli.running import run

if TYPE_CHECKING:
    from covey.data.dataset import Examples, FederatedDataset
    from covey.plans.manifest import ExampleSchema

__all__ = ["command", "fill_home"]

_FOLDER = click.Path(file_okay=False, path_type=Path)


class _Commands(click.Group):
    """Imports what a device's owner asks and decides with when it is used: an agent that runs has no use for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_consent()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._add_consent()
        return super().get_command(ctx, cmd_name)

    def _add_consent(self) -> None:
        from covey.cli import consent

        for each in consent.commands:
            self.add_command(each)


@click.group("device", cls=_Commands)
def command() -> None:
    """Run a device, put examples on it, and see and decide what it does."""


for _each in (run, join, leave, install_service):
    command.add_command(_each)


@command.command()
@click.option("--home", required=True, type=_FOLDER, metavar="DIR", help="State directory of the device.")
@click.option("--recipe", help="Take a client of this recipe's data set.")
@click.option("--client", help="Which client: its number, or its name (for Shakespeare: PLAY/ROLE).")
@click.option("--plan", type=file_path, metavar="FILE", help="Take the fields and the collection from this plan.")
@click.option("--npz", type=file_path, metavar="FILE", help="With --plan: arrays named like the fields.")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True, help="With --npz.")
def fill(home: Path, recipe: str | None, client: str | None, plan: Path | None, npz: Path | None, split: str) -> None:
    """Put examples on a device, as the application on it would.

    Either --recipe and --client, for a device that plays a client of a known data set, or --plan and --npz, for your
    own arrays.
    """
    from covey.types.errors import UsageError

    if recipe is not None and client is not None and npz is None and plan is None:
        from covey.recipes.recipe import load_recipe

        found = load_recipe(recipe)
        dataset = found.data(found.settings, 0)
        name = _client(dataset, client)
        schema = _schema_of(recipe)
        train, test = dataset.train(name), dataset.test(name)
        num_train, num_test = fill_home(home, schema, train, test)
        click.echo(f"{home}: {num_train:,} examples to train on, {num_test:,} held out")
        return
    if plan is None or npz is None or recipe is not None or client is not None:
        raise UsageError("covey device fill", expected="--recipe with --client, or --plan with --npz", got="others")
    arrays = _arrays(npz)
    schema = _plan_schema(plan)
    count, _ = fill_home(home, schema, arrays, {}, split=split)
    click.echo(f"{home}: {count:,} examples to {'train on' if split == 'train' else 'be held out'}")


def fill_home(
    home: Path, schema: "ExampleSchema", train: "Examples", test: "Examples", *, split: str = "train"
) -> tuple[int, int]:
    """Put examples into a state directory; return how many were added to ``split`` and to the held-out ones."""
    from covey.device.home import DeviceHome

    with DeviceHome(home) as opened:
        collection = schema.query.collection
        num_train = opened.examples.add_many(collection, train, schema, split=split)
        num_test = opened.examples.add_many(collection, test, schema, split="test") if test else 0
    return num_train, num_test


def _client(dataset: "FederatedDataset", text: str) -> str:
    from covey.types.errors import UsageError

    ids = dataset.client_ids
    if text in ids:
        return text
    if text.isdecimal() and int(text) < len(ids):
        return ids[int(text)]
    raise UsageError("--client", expected=f"a number from 0 to {len(ids) - 1}, or a client's name", got=text)


def _schema_of(recipe: str) -> "ExampleSchema":
    from covey.recipes.recipe import load_recipe

    return load_recipe(recipe).examples


def _plan_schema(path: Path) -> "ExampleSchema":
    from covey.plans.plan import unpack_plan

    return unpack_plan(read_file(path, "--plan")).manifest.examples


def _arrays(path: Path) -> "Examples":
    import numpy as np

    from covey.types.errors import UsageError

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as e:
        raise UsageError(f"--npz {path}", expected="arrays as numpy.savez writes them", got=str(e)[:100]) from e
