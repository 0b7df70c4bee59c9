"""Preparation of raw text: token shards and a tokenizer."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.places import Place, place_of
from cupola_flows.stages.base import Input, Stage, Stages, Taken
from cupola_flows.stages.data.conversations import ConversationsStage
from cupola_platform.artifacts import Artifact
from cupola_platform.clusters import Cluster
from cupola_platform.corpus.config.prepare import PrepareConfig
from cupola_platform.corpus.pipeline.checks import check_config, check_executor, file_digests, named_sources, prepares
from cupola_platform.corpus.sources.reader import source_state
from cupola_platform.errors import ConfigError
from cupola_platform.strict import Strict
from cupola_trainer.data.instructions import heldout_prompts


class PrepareStage(Stage):
    """Clean, deduplicate and tokenize raw text into shards, and train the tokenizer."""

    gives: ClassVar[str] = "tokens"
    sends_jobs: ClassVar[bool] = True
    starts: ClassVar[str] = "cupola_trainer.evaluation.surprise"
    """Module of the judge's command, `cupola_trainer surprise`. Naming it here adds it to the fingerprint."""

    kind: Literal["prepare"] = "prepare"
    judge: Annotated[str | None, Input("checkpoint", guess=None)] = None
    """Small model for `corpus.perplexity`: a stage trained on an earlier corpus, or `artifact:ID`."""
    corpus: PrepareConfig
    """Sources, cleaning, deduplication, held-out split and tokenizer."""

    @model_validator(mode="after")
    def _judge_has_bounds(self) -> "PrepareStage":
        if bool(self.judge) != bool(self.corpus.perplexity):
            raise ValueError(
                "`judge` (a model) and `corpus.perplexity` (its bounds) need each other. Give both or neither"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Clean, deduplicate, split and tokenize the recipe's sources."""
        from cupola_platform.corpus.pipeline.preparation import prepare  # slow: pyarrow and tokenizers

        def show(step: str, done: int, total: int) -> None:
            ctx.display.advance(ctx.name, step, done, total)

        folder, judge = ctx.empty("tokens"), taken.maybe("judge")
        config = self.corpus if self.corpus.seed else replace(self.corpus, seed=ctx.seed)
        settings = ctx.workspace.settings
        with ctx.taking(self.ranks(place_of(settings, ctx.run_on))):
            report = prepare(
                config,
                folder,
                progress=show,
                test_items=evaluation_prompts(ctx.stages, ctx.seeds) if self._uses_tasks else None,
                scorer=(sys.executable, "-m", "cupola_trainer", "surprise", str(judge.path)) if judge else (),
                cluster=settings.clusters[ctx.run_on] if ctx.run_on else None,
            )
        return ctx.publish(folder, parents=taken.all(), metrics=report.metrics)

    def cluster(self, of_recipe: str | None, clusters: Mapping[str, Cluster]) -> str | None:
        """The cluster that the stage names; or the recipe's, if that kind of cluster runs preparations."""
        usual = super().cluster(of_recipe, clusters)
        if usual and usual in clusters and not self.run_on and not prepares(self.corpus.executor, clusters[usual]):
            return None
        return usual

    def check_cluster(self, cluster: Cluster | None) -> None:
        check_executor(self.corpus.executor, cluster)

    def ranks(self, place: Place) -> int:
        """As many as its tasks that run at once. They take cores: where ranks are GPUs, it counts as one."""
        return 1 if place.unit == "GPUs" else min(self.corpus.executor.workers or place.slots, place.slots)

    def check(self, recipe: Stages) -> None:
        check_config(self.corpus)
        held = [of for of in recipe.stages.values() if isinstance(of, ConversationsStage) and of.tasks]
        if self._uses_tasks and not held:
            raise ConfigError(
                "decontamination.tasks=true: no conversations stage of the recipe has tasks. Name evaluation sets in "
                "`against` instead."
            )

    @property
    def _uses_tasks(self) -> bool:
        return self.corpus.decontamination is not None and self.corpus.decontamination.tasks

    def content(self, stages: Mapping[str, Strict], seeds: Mapping[str, int]) -> dict[str, Any]:
        """State of the sources, and of the held-out prompts that the corpus is decontaminated against."""
        states = {name: source_state(source) for name, source in named_sources(self.corpus).items()}
        tasks = {
            name: [seeds[name], of.model_dump(mode="json", include={"tasks", "heldout_per_task"})]
            for name, of in stages.items()
            if isinstance(of, ConversationsStage)
        }
        return {"sources": states | file_digests(self.corpus), "tasks": tasks if self._uses_tasks else {}}

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        return (
            f"{metrics['documents_kept']:,.0f} of {metrics['documents_read']:,.0f} documents, "
            f"{metrics['bytes_kept'] / 1e6:.1f} of {metrics['bytes_read'] / 1e6:.1f} MB, "
            f"{metrics['train_tokens']:,.0f} tokens"
        )


def evaluation_prompts(stages: Mapping[str, Strict], seeds: Mapping[str, int]) -> dict[str, list[str]]:
    """Held-out prompts of a recipe's `conversations` stages, by stage and task."""
    return {
        f"{name}:{task}": prompts
        for name, stage in stages.items()
        if isinstance(stage, ConversationsStage)
        for task, prompts in heldout_prompts(stage.tasks, stage.heldout_per_task, seeds[name]).items()
    }
