"""``covey device run``: one device in one population, several that play devices, or one in all it has joined."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.files import file_path
from covey.cli.joining import default_home, membership, terms

if TYPE_CHECKING:
    from covey.device.agent import AgentEvent, DeviceAgent
    from covey.device.populations import Membership
    from covey.device.trainer import Trainer

__all__ = ["run"]

_LOOK_S = 1.0
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--server", metavar="URL", help="https://HOST:PORT; without it, the populations joined in --home.")
@click.option("--population", metavar="P", help="The population that this device serves.")
@click.option("--owner-key", type=file_path, metavar="FILE", help="Whose plans it executes: owner.pub.")
@click.option("--ca", type=file_path, metavar="FILE", help="The authority to trust; the system's unless told.")
@click.option(
    "--home", "homes", multiple=True, type=_FOLDER, metavar="DIR",
    help="State directory: examples, credentials, caches. Given several times: several devices in one process.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="End after one update was counted, or with the error that prevented it.")
@terms
@click.option("--assume", default="", metavar="LIST", help="Conditions to take for granted: idle,charging,unmetered.")
@click.option("--isolate", is_flag=True, help="Train in a process of its own, ended where it exceeds a plan's budget.")
@click.option(
    "--priority", type=click.Choice(["low", "normal"]), default="low", show_default=True,
    help="Whether this process gives way to all others.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: for a parent that may die.")
def run(
    server: str | None,
    population: str | None,
    owner_key: Path | None,
    ca: Path | None,
    homes: tuple[Path, ...],
    once: bool,
    assume: str,
    isolate: bool,
    priority: str,
    as_json: bool,
    stop_with_stdin: bool,
    **accepted: Any,
) -> int:
    """Take part until Ctrl-C: in one population, or without --server in all that were joined.

    The device trains only while it is idle, charging and on an unmetered network; --assume takes a condition for
    granted. It checks everything that a server sends against what its owner accepted: the key that signs plans, the
    smallest cohort, and whether updates may travel unmasked. Its examples never leave --home.
    """
    from covey.cli.pipes import terminate_with_stdin
    from covey.device.conditions.system import assumptions
    from covey.device.heap import return_freed_memory
    from covey.device.priority import give_way
    from covey.types.errors import UsageError

    if stop_with_stdin:
        terminate_with_stdin()
    assumed = assumptions(assume)
    if (server is None) != (population is None) or (server is None) != (owner_key is None):
        raise UsageError("covey device run", expected="--server with --population and --owner-key, or none of them",
                         got="some of them")  # fmt: skip
    if priority == "low":
        give_way()
    return_freed_memory()
    homes = homes or (default_home(),)
    if server is None or population is None or owner_key is None:
        if once or len(homes) > 1:
            raise UsageError("covey device run", expected="--server with --once or several --home", got="none")
        return _run_joined(homes[0], assumed, isolate, as_json)
    member = membership(server, population, owner_key, ca, **accepted)
    return _run_devices(homes, member, once, assumed, isolate, as_json)


def _run_joined(home: Path, assume: tuple[str, ...], isolate: bool, as_json: bool) -> int:
    """Serve all populations of one device, in turns."""
    from covey.device.agent import DeviceAgent
    from covey.device.clock import SystemClock
    from covey.device.conditions.system import system_conditions
    from covey.device.home import DeviceHome
    from covey.device.keeper import ReleaseKeeper
    from covey.device.pace import stop_on_signals
    from covey.device.populations import Populations
    from covey.device.scheduler import Schedule, Scheduler
    from covey.device.verified import Verified
    from covey.types.errors import UsageError

    members = Populations(home).read()
    if not members:
        raise UsageError(f"state directory {home}", expected="a population that was joined", got="none",
                         hint="covey device join --help")  # fmt: skip
    clock, trainer, verified, show = SystemClock(), _trainer(isolate), Verified(), _shown("", as_json, threading.Lock())
    with ExitStack() as stack:
        opened = stack.enter_context(DeviceHome(home))
        conditions = stack.enter_context(closing(system_conditions(home, clock, assume=assume)))
        agents, keepers = [], []
        for m in members:
            ca_file, policy = Path(m.ca_file) if m.ca_file else None, m.policy()
            keeper = stack.enter_context(closing(ReleaseKeeper(home, m.server, policy, show, ca_file=ca_file)))
            keepers.append(keeper)
            agents.append(
                DeviceAgent(
                    opened, m.server, policy, ca_file=ca_file, trainer=trainer,
                    conditions=conditions, verified=verified, on_event=keeper, clock=clock,
                    authority=m.pinned_authority(m.authority_tokens()), attestation=m.tokens(),
                )
            )  # fmt: skip
        scheduler = Scheduler(agents, schedule=Schedule(home, clock), clock=clock, on_event=show)
        with stop_on_signals(scheduler.stop, *(k.stop for k in keepers)) as received:
            scheduler.run()
    return 128 + received[0] if received else 0


def _run_devices(
    homes: tuple[Path, ...], member: "Membership", once: bool, assume: tuple[str, ...], isolate: bool, as_json: bool
) -> int:
    """Serve one population with one device, or several that play devices, each in a thread."""
    from covey.device.agent import DeviceAgent
    from covey.device.clock import SystemClock
    from covey.device.conditions.system import system_conditions
    from covey.device.home import DeviceHome
    from covey.device.pace import stop_on_signals
    from covey.device.verified import Verified

    trainer, verified, lock, clock = _trainer(isolate), Verified(), threading.Lock(), SystemClock()
    ca_file, policy = Path(member.ca_file) if member.ca_file else None, member.policy()
    tokens, authority_tokens = member.tokens(), member.authority_tokens()
    with ExitStack() as stack:
        agents = []
        conditions = stack.enter_context(closing(system_conditions(homes[0], clock, assume=assume)))
        for home in homes:
            opened = stack.enter_context(DeviceHome(home))
            show = _shown(home.name if len(homes) > 1 else "", as_json, lock)
            agents.append(
                DeviceAgent(
                    opened, member.server, policy, ca_file=ca_file, trainer=trainer, conditions=conditions,
                    verified=verified, on_event=show, clock=clock,
                    authority=member.pinned_authority(authority_tokens), attestation=tokens,
                )
            )  # fmt: skip
        with stop_on_signals(*(a.stop for a in agents)) as received:
            _run_all(agents, once)
    return 128 + received[0] if received and not once else 0


def _trainer(isolate: bool) -> "Trainer":
    if isolate:
        from covey.device.child import ChildTrainer

        return ChildTrainer()
    from covey.device.trainer import OnnxTrainer

    return OnnxTrainer(within_budget=True)


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
            thread.join(_LOOK_S)  # in pieces, so that the main thread can take a signal on every platform
    if errors:
        raise errors[0]


def _shown(name: str, as_json: bool, lock: threading.Lock) -> "Callable[[AgentEvent], None]":
    import msgspec

    def show(event: "AgentEvent") -> None:
        if as_json:
            line = msgspec.json.encode(
                {
                    "device": name,
                    "population": event.population,
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
