"""Everything that a run needs to go on after a round as if it had never stopped."""

import msgspec

from covey.server.settings import TaskSettings, encode_settings
from covey.server.tasks import TRAIN, TaskState
from covey.simulation.fleet import FleetState
from covey.simulation.population import SessionTimes
from covey.simulation.rest import Rest
from covey.storage.interface import PopulationRecord, PrivacyCharge, Storage, TaskRecord

__all__ = ["Flight", "Snapshot", "resume_population"]


class Flight(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A session under way in asynchronous aggregation; in the order in which they end.

    Attributes:
        at_s: when it ends, in virtual seconds.
        serial: how many began before it.
        device: whose it is.
        version: how many moves the model had made when it began.
        dropped: whether the device gives up.
        times: what it takes.
    """

    at_s: float
    serial: int
    device: int
    version: int
    dropped: bool
    times: SessionTimes = SessionTimes()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A run after a committed round.

    Attributes:
        round: how many are committed.
        names: how many attempts at the next round were named, the one that has begun among them.
        attempts: how many cohorts were drawn.
        now_s: the virtual time.
        checkpoint: the parameters, packed.
        extra: what else the algorithm carries, encoded with names.
        fleet: what was counted of the devices.
        charges: of the privacy ledger.
        rest: who may not check in, under noise of a tree.
        flights: sessions under way, in asynchronous aggregation.
        versions: the checkpoints that they began from, by their number.
        seconds: real time so far.
    """

    round: int
    names: int = 1
    attempts: int
    now_s: float
    checkpoint: bytes
    extra: bytes
    fleet: FleetState
    charges: tuple[PrivacyCharge, ...] = ()
    rest: Rest = msgspec.field(default_factory=Rest)
    flights: tuple[Flight, ...] = ()
    versions: dict[int, bytes] = {}
    seconds: float = 0.0


def resume_population(
    storage: Storage, population: str, plan: bytes, signature: str, before: Snapshot, settings: TaskSettings, task: str
) -> None:
    """Put a population into an empty storage as the snapshot has it; as its server would find it."""
    extra = storage.put_blob(before.extra) if before.extra else ""
    storage.create(PopulationRecord(population, before.round, storage.put_blob(before.checkpoint), extra))
    storage.add_task(
        TaskRecord(
            population,
            task,
            TRAIN,
            storage.put_blob(plan),
            signature,
            encode_settings(settings),
            TaskState.RUNNING.value,
            rounds=before.round,
            version=before.round,
        )
    )
    if before.charges:
        storage.charge_privacy(population, before.charges, lambda spent: None)
