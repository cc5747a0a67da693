"""What ``--privacy SPEC`` becomes in a simulation: terms in the plan, a promise before the run, and one after it."""

from dataclasses import dataclass

from covey.privacy.guarantee import Guarantee, guarantee_of
from covey.privacy.mechanism import Mechanism
from covey.privacy.spec import Setting, parse_spec
from covey.recipes.prepare import Prepared
from covey.recipes.private import with_privacy
from covey.server.coordinator import RoundSettings
from covey.simulation.messages import POPULATION
from covey.storage.interface import Storage
from covey.types.errors import BudgetExhaustedError, UsageError

__all__ = ["Promise", "promised"]


@dataclass(frozen=True, slots=True)
class Promise:
    """A run's differential privacy. Its noise is seeded, so that no guarantee of a simulation is private.

    Attributes:
        mechanism: what the plan says.
        dim: coordinates of the model.
        num_rounds: how many are planned.
    """

    mechanism: Mechanism
    dim: int
    num_rounds: int

    def before(self) -> Guarantee:
        """Return the guarantee of the whole plan.

        Raises:
            BudgetExhaustedError: it is beyond the budget: the run must not start.
        """
        guarantee = guarantee_of(self.mechanism, self.dim, self.num_rounds, private=False)
        if self.mechanism.budget is not None and guarantee.epsilon > self.mechanism.budget:
            raise BudgetExhaustedError(
                "--privacy: budget",
                expected=f"epsilon of at most {self.mechanism.budget:g} for {self.num_rounds} rounds",
                got=f"{guarantee.epsilon:.4g}",
                hint="more noise, fewer rounds, or epsilon= in place of noise=: the run was not started",
            )
        return guarantee

    def after(self, storage: Storage) -> Guarantee:
        """Return the guarantee of the sums that were opened: fewer at a target, more where rounds failed after."""
        opened = len({(c.round, c.attempt, c.phase) for c in storage.privacy_charges(POPULATION)})
        sums = self.num_rounds if self.mechanism.kind == "tree" else opened
        return guarantee_of(self.mechanism, self.dim, sums, private=False)


def promised(
    prepared: Prepared, text: str | None, rounds: RoundSettings, num_rounds: int, num_devices: int
) -> tuple[Prepared, Promise | None]:
    """Write a SPEC into a plan.

    Args:
        prepared: the plan without.
        text: the SPEC; None or ``none``: the plan stays as it is.
        rounds: how rounds go.
        num_rounds: how many are planned.
        num_devices: of the data set.

    Raises:
        PrivacySpecError, PrivacyError: a SPEC that cannot be read, or a promise that cannot be kept.
        UsageError: limits that this federation cannot meet.
    """
    spec = None if text is None else parse_spec(text)
    if spec is None:
        return prepared, None
    setting = Setting(
        cohort=rounds.goal,
        min_survivors=rounds.at_least,
        num_selected=rounds.num_selected,
        rounds=num_rounds,
        population=num_devices,
        dim=0,
    )
    private, mechanism = with_privacy(prepared, spec, setting)
    if mechanism.min_survivors > rounds.at_least:
        raise UsageError(
            "--privacy: min_survivors",
            expected=f"at most {rounds.at_least}, the fewest reports that commit a round",
            got=str(mechanism.min_survivors),
        )
    if mechanism.kind == "tree":
        _check_rest(mechanism, rounds, num_devices)
    return private, Promise(mechanism, private.plan.manifest.num_opened, num_rounds)


def _check_rest(mechanism: Mechanism, rounds: RoundSettings, num_devices: int) -> None:
    """Refuse limits on participation under which some round would find too few devices that may take part."""
    busy = rounds.num_selected * (mechanism.min_separation + 2)
    room = mechanism.max_participation * (num_devices - busy) - rounds.num_selected * mechanism.num_rounds
    unlimited = mechanism.min_separation == 0 and mechanism.max_participation >= mechanism.num_rounds
    if not unlimited and room < 0:
        raise UsageError(
            "--privacy: max_participation, min_separation",
            expected=f"limits under which {num_devices} devices can fill {mechanism.num_rounds} rounds",
            got=f"{mechanism.max_participation} rounds each with {mechanism.min_separation} between",
            hint="more devices (--clients), a smaller cohort, fewer rounds, or looser limits",
        )
