"""Raw text to token shards and a tokenizer."""

from dataclasses import replace

from cupola_flows.context import StageContext
from cupola_flows.stages import PrepareStage
from cupola_platform.artifacts import Artifact


def prepare(ctx: StageContext, stage: PrepareStage) -> Artifact:
    """Clean, deduplicate, split, and tokenize what the recipe's sources hold."""
    from cupola_platform.corpus.preparation import prepare as prepare_corpus  # pyarrow and tokenizers: a second

    def show(step: str, done: int, total: int) -> None:
        ctx.display.advance(ctx.name, step, done, total)

    folder = ctx.empty("tokens")
    config = stage.corpus if stage.corpus.seed else replace(stage.corpus, seed=ctx.seed)
    report = prepare_corpus(config, folder, progress=show)
    return ctx.publish(folder, parents=[], metrics=report.metrics)
