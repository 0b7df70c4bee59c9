"""Look up objectives by name.

The objective NAME is the module `cupola_trainer.objectives.NAME` or `cupola_trainer.rl.NAME`, or a module that an
installed package declares as an entry point `NAME = "package.module"` of the group `cupola.objectives`. The module
defines `build(inputs: ObjectiveInputs) -> Objective`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs

GROUP = "cupola.objectives"
PACKAGES = ("cupola_trainer.objectives", "cupola_trainer.rl")
"""Names rather than imports, so that a job imports, and a stage's fingerprint covers, only its own objective."""


def build_objective(inputs: ObjectiveInputs) -> Objective:
    """Build the objective named `inputs.name`, with its data. Call `runtime.start` first.

    Raises:
        ConfigError: no objective has that name, or its settings are inconsistent.
        SourceError: its data are missing, malformed or too few.
    """
    build: Callable[[ObjectiveInputs], Objective] | None = getattr(_module(inputs.name), "build", None)
    if build is None:
        raise ConfigError(f"There is no objective {inputs.name!r}.{did_you_mean(inputs.name, _names())}")
    return build(inputs)


def _module(name: str) -> ModuleType | None:
    for package in PACKAGES:
        if name in _modules_of(package):
            return importlib.import_module(f"{package}.{name}")
    entry = _entry_points().get(name)
    return importlib.import_module(entry.value) if entry else None


def _names() -> Iterator[str]:
    """Names of all objectives. Imports their modules."""
    for package in PACKAGES:
        yield from (name for name in _modules_of(package) if hasattr(_module(name), "build"))
    yield from _entry_points()


def _modules_of(package: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
