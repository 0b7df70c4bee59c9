"""All model families: one file each in this folder, plus plugins. Each defines one `FAMILY`."""

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
"""Entry point group; each entry names a module that defines `FAMILY`."""


@cache
def families() -> Mapping[str, Family]:
    """Map transformers' model_type to the family: ours by name, then plugins'.

    Raises:
        ConfigError: a plugin defines no family or an existing one; names it.
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
    """The family with this model_type in config.json.

    Raises:
        ConfigError: there is none; suggests the closest name.
    """
    known = families()
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    raise ConfigError(f"model_type={model_type!r} is not supported.{did_you_mean(str(model_type), known)}")


def nearest(model: ModelConfig) -> Family:
    """The family that shares the most traits with a model; of several, the one that it names, else the first."""
    return min(families().values(), key=lambda each: (len(each.mismatches(model)), each.model_type != model.family))


def of(model: ModelConfig) -> Family:
    """The family that a model belongs to.

    Raises:
        ConfigError: transformers has no such model; names the traits that the nearest family does not support.
    """
    family = nearest(model)
    if wrong := ", ".join(f"{trait}={value!r}" for trait, value in family.mismatches(model).items()):
        raise ConfigError(
            f"transformers has no such model: its {family.model_type} does not support {wrong}. It cannot be exported."
        )
    if model.length_scaling and (model.length_scaling.type != "yarn" or not model.dual_chunk):
        raise ConfigError(
            f"config.json has no entry for length_scaling of type {model.length_scaling.type} "
            f"{'with' if model.dual_chunk else 'without'} dual_chunk. It cannot be exported."
        )
    if len({window for window in model.attention_windows if window}) > 1:
        raise ConfigError(
            "transformers supports one window size per model; this model has several. It cannot be exported."
        )
    return family
