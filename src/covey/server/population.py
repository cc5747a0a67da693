"""A population in the storage: begun once, with its first checkpoint; its configured task follows ``server.toml``."""

from pathlib import Path

import msgspec

from covey.plans.plan import unpack_plan
from covey.plans.signing import load_public_key, verify_plan
from covey.server.config import ServerConfig
from covey.server.settings import RoundSettings, TaskSettings, check_settings, decode_settings, encode_settings
from covey.server.tasks import TRAIN, Action, Task, TaskState, after
from covey.storage.interface import PopulationRecord, Storage, TaskRecord
from covey.types.errors import PlanSignatureError, UsageError
from covey.types.tensors import packed_num_bytes

__all__ = ["begin_population", "check_signature", "load_population"]


def begin_population(
    storage: Storage, population: str, plan: bytes, signature: str, checkpoint: bytes, settings: TaskSettings, task: str
) -> None:
    """Create a population with its first checkpoint and one task that trains it.

    Raises:
        StorageError: the population exists, or could not be stored.
    """
    storage.create(PopulationRecord(population, 0, storage.put_blob(checkpoint)))
    storage.add_task(_record(population, task, storage.put_blob(plan), signature, settings))


def load_population(storage: Storage, directory: Path, config: ServerConfig) -> PopulationRecord:
    """Return where the population stands; a new one is made from the files that ``config`` names.

    The settings of its configured task are those of ``config``; where they allow more rounds than it has had, a
    completed task goes on.

    Raises:
        UsageError: a file that is missing, a checkpoint of another model, or a plan other than the one that the task
            was begun with.
        PlanError: the plan is not valid, or not signed by the owner whose key is in the directory.
    """
    record = storage.load(config.population)
    if record is None:
        _create(storage, directory, config)
    elif config.plan:
        _adopt(storage, directory, config)
    record = storage.load(config.population)
    assert record is not None, "it was there, or was created"
    return record


def check_signature(directory: Path, config: ServerConfig, plan_hash: str, signature: str) -> None:
    """Check that the owner signed a plan for this population, so that a wrong key is told at once and not by devices.

    Raises:
        UsageError: the owner's public key is not in the directory.
        PlanSignatureError: another key's signature, or one for another plan or population.
    """
    path = directory / config.owner_key
    key = load_public_key(_read(path), f"file {path}")
    try:
        raw = bytes.fromhex(signature)
    except ValueError as e:
        raise PlanSignatureError("plan", expected="a signature in hex", got="something else") from e
    verify_plan(key, config.population, plan_hash, raw)


def _create(storage: Storage, directory: Path, config: ServerConfig) -> None:
    checkpoint = _read(directory / config.checkpoint)
    if not config.plan:
        storage.create(PopulationRecord(config.population, 0, storage.put_blob(checkpoint)))
        return
    data = _read(directory / config.plan)
    plan = unpack_plan(data)
    signature = _read(directory / config.signature).decode("ascii", "replace").strip()
    if (directory / config.owner_key).exists():  # directories of former versions have none
        check_signature(directory, config, plan.hash, signature)
    if len(checkpoint) != (needed := packed_num_bytes(plan.manifest.params)):
        raise UsageError(
            f"file {directory / config.checkpoint}",
            expected=f"the plan's parameters, {needed} bytes",
            got=f"{len(checkpoint)} bytes",
        )
    settings = _settings(config)
    check_settings(settings.round, plan.manifest)
    begin_population(storage, config.population, data, signature, checkpoint, settings, config.task)


def _adopt(storage: Storage, directory: Path, config: ServerConfig) -> None:
    """Give the configured task its settings."""
    plan = unpack_plan(_read(directory / config.plan))
    found = next((t for t in storage.tasks(config.population) if t.name == config.task), None)
    if found is None or found.plan != plan.hash:
        raise UsageError(
            f"population {config.population!r}",
            expected=f"the plan that task {config.task!r} was begun with" + (f", {found.plan[:12]}…" if found else ""),
            got=f"{plan.hash[:12]}… in {directory / config.plan}" if found else "no such task",
            hint="give the new plan a population, or a directory, of its own",
        )
    settings = _settings(config, decode_settings(found.settings) if found.settings else None)
    check_settings(settings.round, plan.manifest)
    task, state = Task(found, settings), TaskState(found.state)
    if state is TaskState.COMPLETED and not task.finished(0.0):
        state = after(found.name, state, Action.EXTEND)
    encoded = encode_settings(settings)
    if (state.value, encoded) != (found.state, found.settings):
        storage.change_task(config.population, found.name, state.value, encoded)


def _settings(config: ServerConfig, old: TaskSettings | None = None) -> TaskSettings:
    """Return the ``[round]`` table as a task's settings, with the schedule that the task has."""
    rounds = RoundSettings(**msgspec.structs.asdict(config.round))
    return TaskSettings(rounds) if old is None else TaskSettings(rounds, old.every, old.start_at, old.until)


def _record(population: str, name: str, plan: str, signature: str, settings: TaskSettings) -> TaskRecord:
    return TaskRecord(population, name, TRAIN, plan, signature, encode_settings(settings), TaskState.RUNNING.value)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(
            f"file {path}", expected="a readable file", got=e.strerror or "an error", hint="`covey init DIR` makes it"
        ) from e
