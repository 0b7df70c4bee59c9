"""What makes two runs of a stage the same: its config, its parents' content, and the code that it runs. Never paths."""

from collections.abc import Mapping, Sequence
from typing import Any

from cupola_flows.schema import Recipe
from cupola_flows.stage_code import modules_of
from cupola_flows.stages import AnyStage, ConversationsStage, PrepareStage
from cupola_platform.artifacts import code_version
from cupola_platform.artifacts import fingerprint as platform_fingerprint
from cupola_platform.corpus.pipeline.checks import file_digests, named_sources
from cupola_platform.corpus.sources.reader import source_state
from cupola_trainer.data.files import state as files_state

WITHOUT_EFFECT = ("layout", "teacher_layout", "checkpoint", "log_every", "evaluate_every")
"""Fields of a stage that change how fast, how safe or how talkative it is, and not what it gives: an interrupted stage goes on
with others, on fewer machines for instance, and one that is done is not done again."""
NESTED_WITHOUT_EFFECT = (
    "executor",
    "hang_seconds",
    "max_restarts",
    "concurrency",
    "timeout",
    "retries",
    "key_variable",
)
"""The same, wherever they are in a stage's settings."""


def fingerprint(recipe: Recipe, name: str, parents: Mapping[str, Sequence[str]]) -> str:
    """BLAKE3 in hex of everything that decides what the stage gives.

    Args:
        parents: field to the digests of the artifacts that it names.
    """
    stage = recipe.stages[name]
    config = {
        "stage": _with_effect(stage.model_dump(mode="json", exclude={"seed", *stage.takes, *WITHOUT_EFFECT})),
        "seed": recipe.stage_seed(name),
        "fields": {field: len(digests) for field, digests in parents.items()},
        "names": list(recipe.inputs(name).get("checkpoints", ())),
        "sources": _sources(stage),
        "tasks": _tasks(recipe, stage),
    }
    if stage.renders and recipe.template_date:
        config["template_date"] = recipe.template_date.isoformat()
    ordered = [digest for digests in parents.values() for digest in digests]
    return platform_fingerprint(config, ordered, code_version(*modules_of(stage)))


def _sources(stage: AnyStage) -> dict[str, str]:
    if isinstance(stage, PrepareStage):
        states = {name: source_state(source) for name, source in named_sources(stage.corpus).items()}
        return states | file_digests(stage.corpus)
    return {str(place): files_state(source) for place, source in enumerate(getattr(stage, "files", ()))}


def _tasks(recipe: Recipe, stage: AnyStage) -> dict[str, Any]:
    """What decides the held-out questions that a corpus is checked against."""
    if not isinstance(stage, PrepareStage) or not (stage.corpus.decontamination and stage.corpus.decontamination.tasks):
        return {}
    return {
        name: [recipe.stage_seed(name), of.model_dump(mode="json", include={"tasks", "heldout_per_task"})]
        for name, of in recipe.stages.items()
        if isinstance(of, ConversationsStage)
    }


def _with_effect(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _with_effect(value) for key, value in config.items() if key not in NESTED_WITHOUT_EFFECT}
    return [_with_effect(value) for value in config] if isinstance(config, list) else config
