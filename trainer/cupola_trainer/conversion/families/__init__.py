"""All model families: every file of this folder, and what plugins add. Each defines one `FAMILY`."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import Family

PLUGINS = "cupola.families"
"""Group of entry points, each of which names a module that defines `FAMILY`."""


@cache
def families() -> Mapping[str, Family]:
    """transformers' model_type to the family: ours by name, then those of plugins.

    Raises:
        ConfigError: a plugin's module defines no family, or one that there is already; names it.
    """
    own = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    added = sorted({point.value for point in entry_points(group=PLUGINS)})
    known: dict[str, Family] = {}
    for module in own + added:
        family = getattr(importlib.import_module(module), "FAMILY", None)
        if not isinstance(family, Family):
            raise ConfigError(f"{module}, an entry point of {PLUGINS}, defines no FAMILY. Uninstall or correct it.")
        if family.model_type in known:
            raise ConfigError(f"{module} defines the family {family.model_type!r} a second time. Uninstall it.")
        known[family.model_type] = family
    return MappingProxyType(known)


def named(model_type: object) -> Family:
    """The family that config.json calls by this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    known = families()
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    raise ConfigError(f"model_type={model_type!r} is not known.{did_you_mean(str(model_type), known)}")


def nearest(model: ModelConfig) -> Family:
    """The family with which a model shares the most traits: the first of those that come equally near."""
    return min(families().values(), key=lambda family: len(family.mismatches(model)))


def of(model: ModelConfig) -> Family:
    """The family that a model belongs to.

    Raises:
        ConfigError: transformers has no such model; names what the nearest family cannot have.
    """
    family = nearest(model)
    if wrong := ", ".join(f"{trait}={value!r}" for trait, value in family.mismatches(model).items()):
        raise ConfigError(
            f"transformers has no such model: its {family.model_type} cannot have {wrong}. It cannot be exported."
        )
    if model.length_scaling and (model.length_scaling.type != "yarn" or not model.dual_chunk):
        raise ConfigError(
            f"config.json has no entry for length_scaling of type {model.length_scaling.type} "
            f"{'with' if model.dual_chunk else 'without'} dual_chunk. It cannot be exported."
        )
    if len({window for window in model.attention_windows if window}) > 1:
        raise ConfigError("transformers has one window for all layers that have any; this model has several sizes.")
    return family
