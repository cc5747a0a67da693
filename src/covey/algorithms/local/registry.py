"""Device halves by the name of the algorithm. Importing this module imports JAX."""

import dataclasses
from collections.abc import Callable, Mapping

from covey.algorithms.local.fedavg import fedavg_local
from covey.algorithms.local.fednova import fednova_local
from covey.algorithms.local.fedprox import fedprox_local
from covey.algorithms.local.fedsgd import fedsgd_local
from covey.algorithms.local.mimelite import mimelite_local
from covey.algorithms.local.scaffold import scaffold_local
from covey.algorithms.registry import Choice
from covey.plans.task import Local
from covey.types.errors import UsageError

__all__ = ["Facts", "device_halves"]


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a device half is made from.

    Attributes:
        choice: the algorithm and its parameters.
        lr: η.
        server_lr: of the server's step; None: the algorithm's default.
        optimizer: the devices' own.
        num_devices: of the population.
        most_steps: of any session.
    """

    choice: Choice
    lr: float
    server_lr: float | None
    optimizer: str
    num_devices: int
    most_steps: int

    @property
    def step(self) -> float:
        """The learning rate of the server's step."""
        return self.choice.entry.server_lr if self.server_lr is None else self.server_lr


def device_halves(facts: Facts) -> tuple[Local, ...]:
    """Return the device half of each phase of an algorithm.

    Raises:
        UsageError: an optimizer that the algorithm does not take.
    """
    return _MAKE[facts.choice.name](facts)


def _averaged(facts: Facts) -> tuple[Local, ...]:
    """Federated Averaging's device half for algorithms that differ from it on the server only."""
    local = fedavg_local(facts.lr, optimizer=facts.optimizer, server_lr=facts.step)
    settings = {"server_lr": facts.step, **facts.choice.parameters}
    return (dataclasses.replace(local, algorithm=facts.choice.name, settings=settings),)


def _fedprox(facts: Facts) -> tuple[Local, ...]:
    mu = facts.choice.parameters["mu"]
    return (fedprox_local(facts.lr, mu=mu, optimizer=facts.optimizer, server_lr=facts.step),)


def _plain_sgd(facts: Facts) -> None:
    if facts.optimizer != "sgd":
        raise UsageError("--optimizer", expected=f"sgd with {facts.choice.name}", got=facts.optimizer)


def _scaffold(facts: Facts) -> tuple[Local, ...]:
    _plain_sgd(facts)
    population = int(facts.choice.parameters["devices"]) or facts.num_devices
    return (scaffold_local(facts.lr, num_devices=population, server_lr=facts.step),)


def _fednova(facts: Facts) -> tuple[Local, ...]:
    local = fednova_local(facts.lr, most_steps=facts.most_steps, optimizer=facts.optimizer, server_lr=facts.step)
    return (local,)


def _mimelite(facts: Facts) -> tuple[Local, ...]:
    _plain_sgd(facts)
    return mimelite_local(facts.lr, beta=facts.choice.parameters["beta"], server_lr=facts.step)


_MAKE: Mapping[str, Callable[[Facts], tuple[Local, ...]]] = {
    **dict.fromkeys(("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedbuff"), _averaged),
    "fedsgd": lambda facts: (fedsgd_local(server_lr=facts.lr),),
    "fedprox": _fedprox,
    "scaffold": _scaffold,
    "fednova": _fednova,
    "mimelite": _mimelite,
}
