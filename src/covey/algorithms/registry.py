"""Server halves by the name that a plan gives, and what may follow it: ``fedadam:beta1=0.9,tau=1e-3``."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from covey.algorithms.algorithm import Algorithm
from covey.algorithms.evaluation import evaluation
from covey.algorithms.fedavg import fedavg
from covey.algorithms.fedavgm import fedavgm
from covey.algorithms.fedbuff import fedbuff
from covey.algorithms.fednova import fednova
from covey.algorithms.fedopt import fedadagrad, fedadam, fedyogi
from covey.algorithms.fedprox import fedprox
from covey.algorithms.fedsgd import fedsgd
from covey.algorithms.mimelite import mimelite
from covey.algorithms.scaffold import scaffold
from covey.types.errors import UsageError

__all__ = ["ALGORITHMS", "Choice", "Entry", "Parameter", "parse_algorithm", "server_half"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that an algorithm takes besides learning rates: its default, and the bounds of what makes sense."""

    default: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm.

    Attributes:
        server: makes its server half from a plan's settings.
        summary: a few words, for a list.
        server_lr: the default of ``--server-lr``.
        parameters: what may follow its name.
    """

    server: Callable[[Mapping[str, float]], Algorithm]
    summary: str
    server_lr: float = 1.0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


_BETA = Parameter(0.9, 0.0, 0.9999)
_TAU = Parameter(1e-3, 1e-9, 1.0)
_ADAM = {"beta1": _BETA, "beta2": Parameter(0.99, 0.0, 0.99999), "tau": _TAU}

ALGORITHMS: Mapping[str, Entry] = {
    "fedavg": Entry(fedavg, "Federated Averaging"),
    "fedsgd": Entry(fedsgd, "one full gradient from each device a round"),
    "fedprox": Entry(fedprox, "a proximal term holds devices near the model", 1.0, {"mu": Parameter(0.01, 0.0, 10.0)}),
    "fedavgm": Entry(fedavgm, "momentum on the server", 1.0, {"beta": _BETA}),
    "fedadagrad": Entry(fedadagrad, "Adagrad on the server", 0.1, {"beta1": Parameter(0.0, 0.0, 0.9999), "tau": _TAU}),
    "fedadam": Entry(fedadam, "Adam on the server", 0.01, _ADAM),
    "fedyogi": Entry(fedyogi, "Yogi on the server", 0.01, _ADAM),
    "scaffold": Entry(
        scaffold, "control variates that stay on the devices", 1.0, {"devices": Parameter(0.0, 0.0, 1e12)}
    ),
    "fednova": Entry(fednova, "updates normalised by their number of steps"),
    "mimelite": Entry(mimelite, "momentum of the whole, applied on the devices", 1.0, {"beta": _BETA}),
    "fedbuff": Entry(
        fedbuff,
        "asynchronous, through a buffer; plain mode only",
        1.0,
        {"concurrency": Parameter(0.0, 0.0, 1e6), "max_staleness": Parameter(0.0, 0.0, 1e6)},
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A parsed ``--algorithm``: its name, and every one of its parameters, typed or by default."""

    name: str
    parameters: Mapping[str, float]

    @property
    def entry(self) -> Entry:
        """The algorithm's entry."""
        return ALGORITHMS[self.name]


def parse_algorithm(text: str) -> Choice:
    """Parse ``NAME`` or ``NAME:parameter=value,...``.

    Raises:
        UsageError: no such algorithm or parameter (with the near misses), or a value outside its bounds.
    """
    name, _, rest = text.partition(":")
    parameters = _entry(name).parameters
    values = {k: p.default for k, p in parameters.items()}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        if key not in parameters:
            listed = ", ".join(parameters) or "none"
            raise UsageError(
                f"--algorithm {name}", expected=f"parameters among {listed}", got=key, hint=_near(key, parameters)
            )
        values[key] = _number(name, key, value, parameters[key])
    return Choice(name, values)


def server_half(name: str, settings: Mapping[str, float]) -> Algorithm:
    """Return the server half of an algorithm.

    Raises:
        UsageError: no such algorithm; names the near misses.
    """
    if name == "evaluation":  # of a plan that trains nothing: nobody chooses it by name
        return evaluation(settings)
    return _entry(name).server(settings)


def _entry(name: str) -> Entry:
    if name not in ALGORITHMS:
        expected = f"one of {', '.join(sorted(ALGORITHMS))}"
        raise UsageError("--algorithm", expected=expected, got=name, hint=_near(name, ALGORITHMS))
    return ALGORITHMS[name]


def _number(name: str, key: str, text: str, bounds: Parameter) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not bounds.low <= value <= bounds.high:
        expected = f"a number from {bounds.low:g} to {bounds.high:g}"
        raise UsageError(f"--algorithm {name}: {key}", expected=expected, got=text)
    return value


def _near(text: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(text, names, n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""
