"""Everything about a recipe that can be known before anything starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cupola_flows.schema import ARTIFACT, Recipe
from cupola_flows.stages import (
    AnyStage,
    ConversationsStage,
    EvaluateStage,
    LongContextStage,
    PrepareStage,
    PretrainStage,
    PruneStage,
    SftStage,
    TrainStage,
    UpcycleStage,
)
from cupola_flows.stages.reinforcing import ReinforcementStage
from cupola_platform.corpus.checking import check_config
from cupola_platform.errors import ConfigError, CupolaError
from cupola_platform.launch import LocalLauncher
from cupola_platform.settings import Settings
from cupola_trainer.config import ModelConfig, ParallelConfig
from cupola_trainer.layout import validate_layout
from cupola_trainer.long_context import method, stretch
from cupola_trainer.mixture import mixture_of

TEXT = (PretrainStage, LongContextStage)
"""Stages that learn every next token."""


def validate(recipe: Recipe, settings: Settings, only: Sequence[str] = ()) -> None:
    """Refuse a recipe that would fail later.

    Raises:
        SourceError: a source is missing or empty.
        ConfigError: a layout that the model or this machine does not fit, or a batch that does not divide.
    """
    launcher = LocalLauncher(settings.max_processes)
    names = only or recipe.order()
    for name in names:
        with _naming(f"stages.{name}"):
            stage = recipe.stages[name]
            if isinstance(stage, PrepareStage):
                check_config(stage.corpus)
                _check_tasks(recipe, stage)
            else:
                _check_stage(recipe, name, stage, launcher)


def model_of(recipe: Recipe, name: str) -> ModelConfig | None:
    """The shape that a stage's checkpoint will have; none when it comes from an artifact."""
    stage = recipe.stages[name]
    model: ModelConfig | None = getattr(stage, "model", None)
    if model is not None:
        return model
    inputs = recipe.inputs(name)
    parent = next(iter(inputs.get("parent") or inputs.get("checkpoints", ())), None)
    if parent is None or parent.startswith(ARTIFACT):
        return None
    model = model_of(recipe, parent)
    if model and isinstance(stage, UpcycleStage):
        return mixture_of(model, stage.moe, router=stage.router, match_dense=stage.match_dense)
    if model and isinstance(stage, PruneStage):
        return stage.to.shape(model)
    if model and isinstance(stage, LongContextStage):
        return stretch(model, stage.positions, stage.batch.sequence_length)
    return model


def _check_tasks(recipe: Recipe, stage: PrepareStage) -> None:
    decontamination = stage.corpus.decontamination
    held = [of for of in recipe.stages.values() if isinstance(of, ConversationsStage) and of.tasks]
    if decontamination and decontamination.tasks and not held:
        raise ConfigError(
            "decontamination.tasks=true: no conversations stage of the recipe has tasks. Name evaluation sets in against."
        )


def _check_stage(recipe: Recipe, name: str, stage: AnyStage, launcher: LocalLauncher) -> None:
    layout: ParallelConfig | None = getattr(stage, "layout", None)
    if layout is None:
        return
    launcher.check(layout.world_size)
    batch = stage.batch if isinstance(stage, TrainStage) else None
    lora = stage.lora if isinstance(stage, TrainStage) else None
    if batch:
        batch.num_microbatches(layout.dp)
    if isinstance(stage, ReinforcementStage):
        stage.rollout.check(stage.batch, pairs=stage.kind == "online_dpo")
    for source in recipe.inputs(name)["checkpoints"] if isinstance(stage, EvaluateStage) else (name,):
        model = None if source.startswith(ARTIFACT) else model_of(recipe, source)
        if model is not None and lora:
            lora.check(model, layout)
        if model is not None:
            _check_reach(stage, model)
            validate_layout(
                model,
                layout,
                batch,
                reset_at_documents=isinstance(stage, TEXT) and stage.reset_at_documents,
                lengths=stage.lengths() if isinstance(stage, LongContextStage) else None,
                copying=stage.copying if isinstance(stage, TEXT) else None,
                pack=isinstance(stage, SftStage) and stage.pack and layout.cp == 1,
            )


def _check_reach(stage: AnyStage, model: ModelConfig) -> None:
    """Refuse lengths that a checkpoint's positions do not allow before it has been trained."""
    if not isinstance(stage, EvaluateStage):
        return
    longest = model.max_position_embeddings
    if stage.window and stage.window > longest:
        raise ConfigError(
            f"window={stage.window} is more than a checkpoint's max_position_embeddings={longest}. Use window={longest}."
        )
    if reach := stage.long_context:
        for name in reach.methods:
            method(model, name, trained=reach.trained_length or longest, longest=max(reach.lengths))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the place in front of what is wrong there."""
    try:
        yield
    except CupolaError as error:
        raise type(error)(f"{where}: {error}") from None
