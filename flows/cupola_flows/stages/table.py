"""All kinds of stages: those in this package's folders, and those of plugins."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from cupola_flows import stages
from cupola_flows.stages.base import Stage

FINGERPRINTED = False  # finds stages

PLUGINS = "cupola.stages"
"""Entry point group; each entry names a module that defines stages."""


@cache
def kinds() -> Mapping[str, type[Stage]]:
    """Stage classes by kind, sorted by name."""
    own = [each.name for each in pkgutil.walk_packages(stages.__path__, f"{stages.__name__}.") if not each.ispkg]
    modules = {name: importlib.import_module(name) for name in own if name != __name__}
    modules |= {point.value: importlib.import_module(point.value) for point in entry_points(group=PLUGINS)}
    classes = {
        kind_of(each): each
        for each in _subclasses(Stage)
        if each.__module__ in modules and not each.model_fields["kind"].is_required()
    }
    return MappingProxyType(dict(sorted(classes.items())))


def kind_of(stage: type[Stage]) -> str:
    """The kind of a stage class, as written in recipes."""
    return str(stage.model_fields["kind"].default)


def _subclasses(of: type[Stage]) -> Iterator[type[Stage]]:
    for each in of.__subclasses__():
        yield each
        yield from _subclasses(each)
