"""The folder of a run: what it was asked for, its rounds as they happen, and where it stands.

::

    config.json         recipe, settings, seed, versions: what another run must share to go on from here
    plan.covey          the plan
    rounds.jsonl        a line for each committed round
    state.bin           the newest snapshot
    devices/            what devices keep for themselves, where the algorithm has such a thing
    checkpoint.params   the last model, once the run has ended
    report.json         the report, once the run has ended
"""

import time
from pathlib import Path
from typing import Any

import msgspec

from covey.device.files import storage_errors, written_whole
from covey.recipes.recipe import recipe_source
from covey.simulation.report import RoundRow, RunReport, versions
from covey.simulation.snapshot import Snapshot
from covey.storage.lock import DirectoryLock
from covey.types.errors import ResumeError
from covey.types.tensors import sha256_hex

__all__ = ["RunConfig", "RunDir", "read_config", "read_report", "read_rows"]

_EVERY_S = 1.0
"""A snapshot is written at most so often: a run that is killed repeats so much at worst, with the same result."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What decides a run's bits.

    Attributes:
        recipe: its name or path.
        recipe_sha256: of its source text.
        settings: of the training.
        options: of the run: seed, over-selection, the devices' behaviour, privacy.
        plan: its SHA-256.
        asked: how long the run was meant to last, which another run may change.
        versions: of Python and the packages that compute.
    """

    recipe: str
    recipe_sha256: str
    settings: dict[str, Any]
    options: dict[str, Any]
    plan: str
    asked: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(
        cls, recipe: str, settings: dict[str, Any], options: dict[str, Any], plan: str, asked: dict[str, Any]
    ) -> "RunConfig":
        """Return the configuration of a run that begins now, as JSON would give it back."""
        made = cls(
            recipe=recipe,
            recipe_sha256=sha256_hex(recipe_source(recipe)),
            settings=settings,
            options=options,
            plan=plan,
            asked=asked,
            versions=versions(),
        )
        return msgspec.json.decode(msgspec.json.encode(made), type=cls)

    def check_same(self, asked: "RunConfig", folder: Path) -> None:
        """Raise ResumeError where ``asked`` is another configuration; names the first field that differs."""
        before, now = _flat(self), _flat(asked)
        for name in sorted({*before, *now}, key=lambda n: (n.startswith(("plan", "recipe_sha256")), n)):
            if before.get(name) != now.get(name):
                raise ResumeError(
                    f"--resume {folder}: {name}",
                    expected=f"{before.get(name)}, as the run began",
                    got=str(now.get(name)),
                    hint="leave it out to go on as before, or begin a new run with --out",
                )


class RunDir:
    """A run's folder, or none. Rounds are written as they happen: a run that is cut short leaves its curve."""

    def __init__(self, folder: Path | None, config: RunConfig, plan_bytes: bytes, *, resume: bool) -> None:
        """Begin a run in ``folder``, or take one up.

        Raises:
            ResumeError: nothing to resume, a run where none should be, or one of another configuration.
            StorageLockedError: another process runs it.
            StorageFullError, StorageError: the folder cannot be written.
        """
        self._folder = folder
        self._written_s = 0.0
        self._newest: Snapshot | None = None
        self.rows: list[RoundRow] = []
        self.snapshot: Snapshot | None = None
        self._lock: DirectoryLock | None = None
        if folder is None:
            return
        if resume:
            read_config(folder)  # before anything is made in a folder that holds no run
        self._lock = DirectoryLock(folder / "lock", "simulation")
        try:
            self._open(folder, config, plan_bytes, resume=resume)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, folder: Path, config: RunConfig, plan_bytes: bytes, *, resume: bool) -> None:
        if resume:
            read_config(folder).check_same(config, folder)
            self._read(folder)
        elif (folder / "config.json").exists():
            raise ResumeError(
                f"--out {folder}",
                expected="a folder without a run",
                got="one with a run in it",
                hint=f"--resume {folder} goes on with it; another folder begins anew",
            )
        with storage_errors(f"--out {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan.covey").write_bytes(plan_bytes)
            lines = b"".join(msgspec.json.encode(row) + b"\n" for row in self.rows)
            with written_whole(folder / "rounds.jsonl") as file:
                file.write(lines)
            with written_whole(folder / "config.json") as file:
                file.write(msgspec.json.format(msgspec.json.encode(config)))

    @property
    def states(self) -> Path | None:
        """The folder of what devices keep for themselves; None without a run's folder."""
        if self._folder is None:
            return None
        path = self._folder / "devices"
        with storage_errors(f"--out {self._folder}"):
            path.mkdir(exist_ok=True)
        return path

    def add(self, row: RoundRow, snapshot: Snapshot, *, at_once: bool) -> None:
        """Keep a committed round, and from time to time, or ``at_once``, where the run stands."""
        if self._folder is None:
            return
        with storage_errors(f"--out {self._folder}"), (self._folder / "rounds.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
        self._newest = snapshot
        if at_once or time.monotonic() >= self._written_s + _EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the newest snapshot, if it is not there yet."""
        if self._folder is None or self._newest is None:
            return
        with storage_errors(f"--out {self._folder}"), written_whole(self._folder / "state.bin") as file:
            file.write(msgspec.msgpack.encode(self._newest))
        self._newest, self._written_s = None, time.monotonic()

    def close(self) -> None:
        """Write the newest snapshot, if it is not there yet, and let others have the folder."""
        try:
            self.save()
        finally:
            if self._lock is not None:
                self._lock.close()

    def finish(self, report: RunReport, checkpoint: bytes) -> None:
        """Write the last model and the report."""
        self.save()
        if self._folder is not None:
            with storage_errors(f"--out {self._folder}"):
                (self._folder / "checkpoint.params").write_bytes(checkpoint)
                (self._folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))

    def _read(self, folder: Path) -> None:
        try:
            self.snapshot = msgspec.msgpack.decode((folder / "state.bin").read_bytes(), type=Snapshot)
        except FileNotFoundError:
            return  # it was stopped before its first round was stored: it begins again
        except (OSError, msgspec.MsgspecError) as e:
            raise ResumeError(f"--resume {folder}", expected="a readable state.bin", got=str(e)[:200]) from e
        self.rows = read_rows(folder)[: self.snapshot.round]
        if len(self.rows) < self.snapshot.round:
            got = f"{len(self.rows)} rounds"
            raise ResumeError(f"--resume {folder}", expected=f"{self.snapshot.round} rounds in rounds.jsonl", got=got)


def read_config(folder: Path) -> RunConfig:
    """Return what a run was asked for.

    Raises:
        ResumeError: there is no run.
    """
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=RunConfig)
    except (OSError, msgspec.MsgspecError) as e:
        raise ResumeError(
            f"run {folder}",
            expected="a folder that covey simulate --out wrote",
            got="a folder with runs in it" if (several := any(folder.glob("*/config.json"))) else "none",
            hint=f"name the runs: {folder}/*" if several else "check the path",
        ) from e


def read_rows(folder: Path) -> list[RoundRow]:
    """Return the committed rounds of a run, whether it has ended or not.

    Raises:
        StorageError: they cannot be read.
    """
    with storage_errors(f"run {folder}"):
        lines = (folder / "rounds.jsonl").read_bytes().splitlines()
    out = []
    for line in lines:
        try:
            out.append(msgspec.json.decode(line, type=RoundRow))
        except msgspec.MsgspecError:
            break  # the last line of a run that was killed while it wrote
    return out


def read_report(folder: Path) -> RunReport:
    """Return a run's report.

    Raises:
        ResumeError: there is no run, or it has not ended.
    """
    read_config(folder)
    try:
        return msgspec.json.decode((folder / "report.json").read_bytes(), type=RunReport)
    except FileNotFoundError as e:
        raise ResumeError(
            f"run {folder}",
            expected="a run that has ended",
            got="one that was cut short",
            hint=f"covey simulate --resume {folder} ends it",
        ) from e
    except (OSError, msgspec.MsgspecError) as e:
        raise ResumeError(f"run {folder}", expected="a readable report.json", got=str(e)[:200]) from e


def _flat(config: RunConfig) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in config.__struct_fields__:
        if name == "asked":
            continue
        value = getattr(config, name)
        out |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return out
