"""``covey device``: a device in a terminal. Needs neither JAX nor any server package."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli import consent
from covey.cli.options import file_path, read_file

if TYPE_CHECKING:
    from covey.data.dataset import Examples, FederatedDataset
    from covey.device.agent import AgentEvent, DeviceAgent
    from covey.device.authority import PinnedAuthority
    from covey.plans.manifest import ExampleSchema

__all__ = ["command", "fill_home"]

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("device")
def command() -> None:
    """Run a device, put examples on it, and see and decide what it does."""


for _own in consent.commands:
    command.add_command(_own)


@command.command()
@click.option("--server", required=True, metavar="URL", help="https://HOST:PORT")
@click.option("--population", required=True, metavar="P", help="The population that this device serves.")
@click.option("--owner-key", required=True, type=file_path, metavar="FILE", help="Whose plans it executes: owner.pub.")
@click.option("--ca", type=file_path, metavar="FILE", help="The authority to trust; the system's unless told.")
@click.option(
    "--home", "homes", required=True, multiple=True, type=_FOLDER, metavar="DIR",
    help="State directory: examples, credential, caches. Given several times: several devices in one process.",
)  # fmt: skip
@click.option("--authority", "authority_url", metavar="URL", help="The enrolment authority: https://HOST:PORT")
@click.option("--authority-key", type=file_path, metavar="FILE", help="Whose certificates count: authority.pub.")
@click.option("--authority-ca", type=file_path, metavar="FILE", help="For its HTTPS; the system's unless told.")
@click.option("--attestation", metavar="FILE|-", help="Tokens of the application's backend for the server.")
@click.option("--authority-attestation", metavar="FILE|-", help="The same for the authority; one is used up an hour.")
@click.option("--once", is_flag=True, help="End after one update was counted, or with the error that prevented it.")
@click.option("--accept-plain", is_flag=True, help="Accept that updates travel unmasked: the server could look at one.")
@click.option("--min-cohort", type=int, default=100, show_default=True, help="The fewest devices in an opened sum.")
@click.option("--min-noise", type=float, default=0.0, metavar="Z", help="The least sigma / clip of noise in a sum.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: for a parent that may die.")
def run(
    server: str,
    population: str,
    owner_key: Path,
    ca: Path | None,
    homes: tuple[Path, ...],
    authority_url: str | None,
    authority_key: Path | None,
    authority_ca: Path | None,
    attestation: str | None,
    authority_attestation: str | None,
    once: bool,
    accept_plain: bool,
    min_cohort: int,
    min_noise: float,
    as_json: bool,
    stop_with_stdin: bool,
) -> int:
    """Take part in a population until Ctrl-C.

    The device checks everything that the server sends against what its owner accepted here: the key that signs plans,
    the smallest cohort, and whether updates may travel unmasked. Its examples never leave --home.
    """
    from covey.cli.pipes import terminate_with_stdin
    from covey.device.agent import DeviceAgent
    from covey.device.home import DeviceHome
    from covey.device.pace import stop_on_signals
    from covey.device.policy import OwnerPolicy
    from covey.device.private import PrivacyFloor
    from covey.device.trainer import OnnxTrainer
    from covey.device.verified import Verified
    from covey.plans.signing import load_public_key
    from covey.types.errors import UsageError

    if stop_with_stdin:
        terminate_with_stdin()
    if min_cohort < 1:
        raise UsageError("--min-cohort", expected="at least 1", got=str(min_cohort))
    key = load_public_key(read_file(owner_key, "--owner-key"), f"--owner-key {owner_key}")
    if not 0 <= min_noise < float("inf"):
        raise UsageError("--min-noise", expected="a noise multiplier of at least 0", got=f"{min_noise:g}")
    floor = PrivacyFloor(noise_multiplier=min_noise)
    authorities = _authorities(
        authority_url, authority_key, authority_ca, population, _tokens(authority_attestation), len(homes)
    )
    policy = OwnerPolicy(
        key,
        population,
        accept_plain=accept_plain,
        min_cohort=min_cohort,
        privacy=floor,
        authority=authorities[0].key if authorities[0] is not None else b"",
    )
    tokens = _tokens(attestation)
    trainer, verified, lock = OnnxTrainer(), Verified(), threading.Lock()
    with ExitStack() as stack:
        agents = []
        for home, authority in zip(homes, authorities, strict=True):
            opened = stack.enter_context(DeviceHome(home))
            show = _shown(home.name if len(homes) > 1 else "", as_json, lock)
            agents.append(
                DeviceAgent(
                    opened,
                    server,
                    policy,
                    ca_file=ca,
                    trainer=trainer,
                    verified=verified,
                    on_event=show,
                    authority=authority,
                    attestation=tokens,
                )
            )
        with stop_on_signals(*(a.stop for a in agents)) as received:
            _run_all(agents, once)
    return 128 + received[0] if received and not once else 0


def _tokens(name: str | None) -> "Callable[[], str]":
    """Return what gives the device's next attestation."""
    from covey.device.tokens import AttestationFile

    return AttestationFile(Path(name)) if name is not None else lambda: ""


def _authorities(
    url: str | None, key_file: Path | None, ca: Path | None, population: str, tokens: "Callable[[], str]", count: int
) -> "list[PinnedAuthority] | list[None]":
    """Return a pinned authority for each device, or none for any."""
    from covey.device.authority import PinnedAuthority
    from covey.plans.signing import load_public_key
    from covey.types.errors import UsageError

    if url is None and key_file is None:
        return [None] * count
    if url is None or key_file is None:
        raise UsageError(
            "--authority",
            expected="URL and --authority-key FILE, both",
            got="one of them",
            hint="the key comes from the application by a trusted way, never from the server",
        )
    key = load_public_key(read_file(key_file, "--authority-key"), f"--authority-key {key_file}").public_bytes_raw()
    return [PinnedAuthority(url, key, population, ca_file=ca, attestation=tokens) for _ in range(count)]


def _run_all(agents: "list[DeviceAgent]", once: bool) -> None:
    """Run every agent in a thread of its own; raise the first error that ended one, after all have ended."""
    errors: list[BaseException] = []

    def run_one(agent: "DeviceAgent") -> None:
        try:
            agent.run(once=once)
        except BaseException as error:
            errors.append(error)
            for other in agents:
                if other is not agent:
                    other.stop()

    threads = [threading.Thread(target=run_one, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # in pieces, so that the main thread can take a signal
    if errors:
        raise errors[0]


def _shown(name: str, as_json: bool, lock: threading.Lock) -> "Callable[[AgentEvent], None]":
    import msgspec

    def show(event: "AgentEvent") -> None:
        if as_json:
            line = msgspec.json.encode(
                {
                    "device": name,
                    "kind": event.kind,
                    "round": event.round,
                    "num_steps": event.num_steps,
                    "code": event.error.code if event.error else "",
                    "text": event.text,
                }
            ).decode()
        else:
            line = f"{name}: {event.text}" if name else event.text
        with lock:
            click.echo(line)

    return show


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
