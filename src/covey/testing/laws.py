"""What the checks of :mod:`covey.testing.storage` stand on: records to store, and how a broken law is told."""

from collections.abc import Callable

from covey.storage.interface import PopulationRecord, PrivacyCharge, Storage, TaskRecord
from covey.types.tensors import sha256_hex
from covey.wire.messages import RoundSummary

__all__ = ["KEEP_CHECKPOINTS", "Check", "Open", "begin", "charge_of", "expect", "expect_error", "summary_of", "task_of"]

KEEP_CHECKPOINTS = 2
"""How many checkpoints the storage under test keeps."""

Open = Callable[[], Storage]
Check = Callable[[Open], None]


def summary_of(number: int, status: str = "committed", task: str = "train") -> RoundSummary:
    """Return a round's row to store; rows of different numbers differ."""
    return RoundSummary(
        round=number,
        status=status,
        reason="" if status == "committed" else "too_few_reports",
        selected=number + 3,
        reported=number + 2,
        lost=1,
        seconds=number / 8,
        bytes_down=5 * number,
        bytes_up=7 * number,
        metrics={"loss": number / 4},
        task=task,
    )


def task_of(name: str = "train", population: str = "p", kind: str = "train", checkpoint: str = "") -> TaskRecord:
    """Return a task to store; its plan is that of :func:`begin`."""
    plan = sha256_hex(b"plan")
    return TaskRecord(population, name, kind, plan, "5160", b'{"a":1}', "running", checkpoint=checkpoint)


def begin(storage: Storage, population: str = "p") -> PopulationRecord:
    """Create a population at round 0 with a task ``train``, and return its record."""
    storage.put_blob(b"plan")
    record = PopulationRecord(population, 0, storage.put_blob(b"checkpoint 0"))
    storage.create(record)
    storage.add_task(task_of(population=population))
    return record


def charge_of(number: int, loss: bytes = b"loss", times: int = 1) -> PrivacyCharge:
    """Return a row of a privacy ledger to store; rows of different numbers differ."""
    return PrivacyCharge(plan=f"plan {number}", round=number, phase=0, attempt=f"a{number}", loss=loss, times=times)


def expect(holds: bool, law: str) -> None:
    """Raise AssertionError, which names the law, unless it holds."""
    if not holds:
        raise AssertionError(f"broken law: {law}")


def expect_error(kind: type[Exception], call: Callable[[], object], law: str) -> None:
    """Raise AssertionError, which names the law, unless ``call`` raises an error of that kind."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"broken law: {law}: expected {kind.__name__}")
