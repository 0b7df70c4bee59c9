"""Validation of a recipe before it starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cupola_flows.execution.places import Place, place_of
from cupola_flows.recipe.schema import Recipe
from cupola_flows.stages.base import ARTIFACT
from cupola_flows.stages.evaluation.evaluate import EvaluateStage
from cupola_platform.errors import CupolaError
from cupola_platform.launch.interface import Launcher
from cupola_platform.launch.launcher import make_launcher, that_fit
from cupola_platform.settings import Settings
from cupola_trainer.config import LayoutConfig, ModelConfig


def validate(recipe: Recipe, settings: Settings, only: Sequence[str] = ()) -> None:
    """Refuse a recipe that would fail later.

    Raises:
        SourceError: a source is missing or empty.
        ConfigError: a layout does not fit the model or this machine, or a batch is not divisible.
    """
    names = only or recipe.order()
    for name in names:
        with _naming(f"stages.{name}"):
            recipe.stages[name].check(recipe)
            cluster = recipe.stages[name].cluster(recipe.run_on, settings.clusters)
            launcher = make_launcher(settings, cluster)
            recipe.stages[name].check_cluster(settings.clusters[cluster] if cluster else None)
            _check_layout(recipe, name, launcher, place_of(settings, cluster))


def model_of(recipe: Recipe, name: str) -> ModelConfig | None:
    """Shape of a stage's checkpoint; None if it comes from an artifact."""
    inputs = recipe.inputs(name)
    parent = next(iter(inputs.get("parent") or inputs.get("checkpoints", ())), None)
    known = None if parent is None or parent.startswith(ARTIFACT) else model_of(recipe, parent)
    return recipe.stages[name].shape(known)


def _check_layout(recipe: Recipe, name: str, launcher: Launcher, place: Place) -> None:
    stage = recipe.stages[name]
    layout: LayoutConfig | None = getattr(stage, "layout", None)
    if layout is None:
        return
    layouts: tuple[LayoutConfig, ...] = getattr(stage, "layouts", ()) or (layout,)
    that_fit(launcher, [each.world_size for each in layouts])
    for source in recipe.inputs(name)["checkpoints"] if isinstance(stage, EvaluateStage) else (name,):
        model = None if source.startswith(ARTIFACT) else model_of(recipe, source)
        for each in layouts:
            stage.check_place(place, model, each)
            if model is not None:
                stage.check_model(model, each)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Prefix errors with the stage's name."""
    try:
        yield
    except CupolaError as error:
        raise type(error)(f"{where}: {error}") from None
