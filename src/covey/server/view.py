"""What is told of a population: to everybody, and to an administrator."""

from covey.server.coordinator import Coordinator
from covey.server.releases import ReleaseDesk
from covey.storage.interface import Storage
from covey.types.errors import NotFoundError
from covey.wire.administration import BufferStatus, PopulationDetails
from covey.wire.messages import PopulationStatus

__all__ = ["buffer_status", "population_details", "population_status"]


def buffer_status(coordinator: Coordinator) -> BufferStatus:
    """Return how far the buffer of an asynchronous training is; zeros where there is none."""
    return BufferStatus() if coordinator.buffer is None else coordinator.buffer.status


def population_status(
    coordinator: Coordinator, storage: Storage, desk: ReleaseDesk, *, waiting: int, after: int, now_s: float
) -> PopulationStatus:
    """Return the public state, with the summaries after the first ``after``.

    Raises:
        NotFoundError: a population that nothing has trained yet.
    """
    task = coordinator.training
    if task is None:
        raise NotFoundError("population", expected="one with a task that trains", got="none yet")
    manifest = coordinator.manifest(task.name)
    return PopulationStatus(
        population=coordinator.population,
        task=manifest.task,
        state=coordinator.state.value,
        round=coordinator.round,
        waiting=waiting,
        plan=coordinator.plan(task.name),
        checkpoint=coordinator.checkpoint,
        mode=manifest.privacy.mode,
        min_cohort=manifest.privacy.min_cohort,
        rounds=storage.rounds(coordinator.population, max(0, after)),
        release=desk.version,
        releasing=desk.state(now_s),
    )


def population_details(coordinator: Coordinator, storage: Storage, *, waiting: int) -> PopulationDetails:
    """Return what an administrator is told."""
    return PopulationDetails(
        population=coordinator.population,
        state=coordinator.state.value,
        round=coordinator.round,
        checkpoint=coordinator.checkpoint,
        waiting=waiting,
        tasks=coordinator.tasks(),
        versions=tuple(v.round for v in storage.versions(coordinator.population)),
    )
