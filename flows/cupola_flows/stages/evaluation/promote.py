"""Moves an alias to the best checkpoint if the evaluation allows it, and records why or why not.

All compared numbers are on the same held-out text and tasks: checkpoints that the evaluation lacks are measured now, in
the same way.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import ARTIFACT, Input, Stage, Stages, Taken
from cupola_flows.stages.evaluation.decision import Measured, decide
from cupola_flows.stages.evaluation.evaluate import EvaluateStage, evaluation_job
from cupola_flows.stages.pretraining.pretrain import PretrainStage
from cupola_platform.aliases import fault
from cupola_platform.artifacts import Artifact
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.errors import ConfigError


def last_pretraining(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """The nearest earlier pretraining stage."""
    earlier = list(recipe.stages)[: list(recipe.stages).index(name)]
    return tuple(stage for stage in earlier if isinstance(recipe.stages[stage], PretrainStage))[-1:]


def measured(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """The checkpoints of a promotion's evaluation, without the baseline."""
    evaluation = next(iter(recipe.references(name, "evaluation")))
    if evaluation.startswith(ARTIFACT):
        return ()
    baseline = recipe.references(name, "baseline")
    return tuple(each for each in recipe.references(evaluation, "checkpoints") if each not in baseline)


class PromoteStage(Stage):
    """Move an alias to the best of several checkpoints if the evaluation allows it."""

    gives: ClassVar[str] = "promotion"
    sends_jobs: ClassVar[bool] = True
    keeps_its_place: ClassVar[bool] = True
    renders: ClassVar[bool] = True

    kind: Literal["promote"] = "promote"
    checkpoints: Annotated[tuple[str, ...], Input("checkpoint", guess=measured)] = ()
    """Stages whose checkpoints are candidates; empty for all in the evaluation."""
    baseline: Annotated[str | None, Input("checkpoint", guess=last_pretraining, optional=True)] = None
    """Stage whose checkpoint the best candidate must beat on tasks, without losing on bits per byte. None for the last
    pretraining. It is not a candidate itself."""
    evaluation: Annotated[str | None, Input("evaluation")] = None
    """Stage whose evaluation decides."""
    alias: str = "champion"
    """The alias to move."""
    bits_per_byte_tolerance: float = Field(default=0.05, ge=0)
    """Largest relative increase of held-out bits per byte over the baseline and over the incumbent."""

    @field_validator("alias")
    @classmethod
    def _is_an_alias(cls, alias: str) -> str:
        if wrong := fault(alias):
            raise ValueError(wrong)
        return alias

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Choose the best candidate, move `alias` to it if the evaluation allows it, and publish the decision."""
        evaluation, baseline = taken.one("evaluation"), taken.maybe("baseline")
        candidates = {
            name: candidate
            for name, candidate in taken.named("checkpoints").items()
            if not baseline or candidate.digest != baseline.digest
        }
        if not candidates:
            raise ConfigError(f"stages.{ctx.name}: no candidates besides the baseline. Name one in `checkpoints`.")
        alias = ctx.workspace.registry.alias(self.alias)
        incumbent = ctx.workspace.resolve(alias.digest) if alias else None
        compared = [*candidates.values(), *taken.all("baseline"), *([incumbent] if incumbent else [])]
        numbers = _measured(ctx, evaluation, compared)
        decision = decide(
            {name: numbers[artifact.digest] for name, artifact in candidates.items()},
            siblings=_siblings(ctx, evaluation, [*candidates.values(), baseline], baseline),
            baseline=numbers[baseline.digest] if baseline else None,
            incumbent=numbers[incumbent.digest] if incumbent else None,
            tolerance=self.bits_per_byte_tolerance,
        )
        best = candidates[decision.best]
        if decision.promoted and (incumbent is None or best.digest != incumbent.digest):
            ctx.workspace.registry.set_alias(self.alias, best.digest, " ".join(decision.reasons))
        folder = ctx.empty("promotion")
        content = {
            "alias": self.alias,
            "candidate": best.digest,
            "stage": decision.best,
            "incumbent": incumbent.digest if incumbent else None,
            "promoted": decision.promoted,
            "reasons": list(decision.reasons),
        }
        (folder / "decision.json").write_text(json.dumps(content, indent=2))
        parents = [*candidates.values(), evaluation, *taken.all("baseline")]
        return ctx.publish(folder, parents=parents, metrics={"promoted": float(decision.promoted)})

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        return "promoted" if metrics["promoted"] else "not promoted"


def _siblings(
    ctx: StageContext, evaluation: Artifact, compared: Sequence[Artifact | None], baseline: Artifact | None
) -> dict[str, Measured]:
    """Other checkpoints in the evaluation that descend from the baseline; all others without a baseline."""
    known = {artifact.digest for artifact in compared if artifact}
    others = {name: entry for name, entry in _entries(evaluation).items() if entry["digest"] not in known}
    if baseline is None:
        return others
    ancestors = {name: ctx.workspace.registry.ancestors(entry["digest"]) for name, entry in others.items()}
    return {
        name: others[name] for name, lineage in ancestors.items() if any(a.digest == baseline.digest for a in lineage)
    }


def _entries(evaluation: Artifact) -> dict[str, Measured]:
    entries: dict[str, Measured] = json.loads((evaluation.path / "results.json").read_text())["checkpoints"]
    return entries


def _measured(ctx: StageContext, evaluation: Artifact, compared: Sequence[Artifact]) -> dict[str, Measured]:
    """Each checkpoint's numbers by digest, from this evaluation or measured now on the same text and tasks.

    Other evaluations may have used other text.
    """
    known = {entry["digest"]: entry for entry in _entries(evaluation).values()}
    missing = {artifact.id: artifact for artifact in compared if artifact.digest not in known}
    if not missing:
        return known
    kinds = {parent.manifest.kind: parent for parent in map(ctx.workspace.resolve, evaluation.manifest.parents)}
    stage = EvaluateStage.model_validate(evaluation.manifest.config)
    job = evaluation_job(ctx, stage, missing, tokens=kinds["tokens"], conversations=kinds.get("conversations"))
    # another incumbent needs another job
    output = ctx.folder / f"measured-{digest_bytes(' '.join(missing).encode())[:12]}"
    run_job(ctx, job.but(output=output))
    results = json.loads((output / "results.json").read_text())
    shutil.rmtree(output)
    return known | {entry["digest"]: entry for entry in results["checkpoints"].values()}
