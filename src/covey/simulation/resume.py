"""Take a run up again: what it was asked for, read back into settings and options."""

import dataclasses
from pathlib import Path
from typing import Any

from covey.recipes.recipe import Settings
from covey.simulation.population import DevicePopulation
from covey.simulation.run import SimulationOptions
from covey.simulation.rundir import read_config
from covey.types.errors import ResumeError

__all__ = ["resumed"]


def resumed(folder: Path) -> tuple[str, Settings, SimulationOptions]:
    """Return the recipe, the settings and the options of the run in ``folder``, with ``resume`` set.

    Whoever changes any that decide a run's bits is refused when the run is taken up.

    Raises:
        ResumeError: no run, or one of a version with other settings.
    """
    config = read_config(folder)
    options, behaviour = dict(config.options), {}
    for field in dataclasses.fields(DevicePopulation):
        behaviour[field.name] = options.pop(field.name, field.default)
    asked: dict[str, Any] = {**config.asked, **options}
    try:
        return (
            config.recipe,
            Settings(**config.settings),
            SimulationOptions(population=DevicePopulation(**behaviour), out=folder, resume=True, **asked),
        )
    except TypeError as e:
        raise ResumeError(
            f"--resume {folder}",
            expected="settings of this version of Covey",
            got="others",
            hint="go on with the version that began the run",
        ) from e
