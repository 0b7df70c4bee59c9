"""Raw text to token shards and a tokenizer."""

import sys
from dataclasses import replace

from cupola_flows.context import StageContext
from cupola_flows.schema import Recipe
from cupola_flows.stages import ConversationsStage, PrepareStage
from cupola_platform.artifacts import Artifact
from cupola_trainer.data.instructions import heldout_questions


def prepare(ctx: StageContext, stage: PrepareStage, judge: Artifact | None) -> Artifact:
    """Clean, deduplicate, split, and tokenize what the recipe's sources hold."""
    from cupola_platform.corpus.preparation import prepare as prepare_corpus  # pyarrow and tokenizers: a second

    def show(step: str, done: int, total: int) -> None:
        ctx.display.advance(ctx.name, step, done, total)

    folder = ctx.empty("tokens")
    config = stage.corpus if stage.corpus.seed else replace(stage.corpus, seed=ctx.seed)
    items = evaluation_questions(ctx.recipe) if config.decontamination and config.decontamination.tasks else None
    scorer = (sys.executable, "-m", "cupola_trainer", "surprise", str(judge.path)) if judge else ()
    report = prepare_corpus(config, folder, progress=show, test_items=items, scorer=scorer)
    return ctx.publish(folder, parents=[judge] if judge else [], metrics=report.metrics)


def evaluation_questions(recipe: Recipe) -> dict[str, list[str]]:
    """The questions that the recipe's `conversations` stages hold out, by stage and task."""
    return {
        f"{name}:{task}": questions
        for name, stage in recipe.stages.items()
        if isinstance(stage, ConversationsStage)
        for task, questions in heldout_questions(stage.tasks, stage.heldout_per_task, recipe.stage_seed(name)).items()
    }
