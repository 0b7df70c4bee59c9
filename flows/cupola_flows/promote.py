"""Moves an alias to a checkpoint, if the numbers allow, and says why or why not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupola_flows.context import StageContext
from cupola_flows.evaluate import evaluation_job
from cupola_flows.jobs import run_job
from cupola_flows.stages import EvaluateStage, PromoteStage
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError

Measured = Mapping[str, Any]
"""One checkpoint's entry in `results.json`."""


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and the comparisons that decided it, each in a sentence."""

    promoted: bool
    reasons: tuple[str, ...]


def promote(
    ctx: StageContext, stage: PromoteStage, candidate: Artifact, evaluation: Artifact, baseline: Artifact | None = None
) -> Artifact:
    """Decide by an evaluation whether `alias` moves to the candidate; move it; publish the decision."""
    measured = _by_digest(evaluation)
    if candidate.digest not in measured:
        raise ConfigError(
            f"stages.{ctx.name}: evaluation {evaluation.id} has not measured the candidate {candidate.id}."
        )
    incumbent = _current(ctx, stage.alias)
    if incumbent == candidate.digest:
        decision = Decision(True, (f"{candidate.id} is {stage.alias} already.",))
    else:
        decision = decide(
            measured[candidate.digest],
            incumbent=_incumbent(ctx, incumbent, measured, evaluation),
            baseline=measured.get(baseline.digest) if baseline else None,
            tolerance=stage.bits_per_byte_tolerance,
        )
    if decision.promoted and incumbent != candidate.digest:
        ctx.workspace.registry.set_alias(stage.alias, candidate.digest, " ".join(decision.reasons))
    folder = ctx.empty("promotion")
    content = {
        "alias": stage.alias,
        "candidate": candidate.digest,
        "incumbent": incumbent,
        "promoted": decision.promoted,
        "reasons": list(decision.reasons),
    }
    (folder / "decision.json").write_text(json.dumps(content, indent=2))
    parents = [candidate, evaluation, *([baseline] if baseline else [])]
    return ctx.publish(folder, parents=parents, metrics={"promoted": float(decision.promoted)})


def _current(ctx: StageContext, alias: str) -> str | None:
    found = ctx.workspace.registry.alias(alias)
    return found.digest if found else None


def decide(candidate: Measured, *, incumbent: Measured | None, baseline: Measured | None, tolerance: float) -> Decision:
    """Promote unless a comparison speaks against it.

    Against the baseline the candidate's accuracy must be higher, and the two intervals must not touch. Against the incumbent its interval must reach the incumbent's value, and its bits per byte may
    be worse by `tolerance`, relative.
    """
    checks = [
        *([_clearly_better(candidate, baseline)] if baseline else []),
        *(_no_worse(candidate, incumbent, tolerance) if incumbent else [(True, "There is no incumbent to beat.")]),
    ]
    return Decision(all(passed for passed, _ in checks), tuple(reason for _, reason in checks))


def _clearly_better(candidate: Measured, baseline: Measured) -> tuple[bool, str]:
    ours, theirs = candidate.get("accuracy"), baseline.get("accuracy")
    if not ours or not theirs:
        return False, "No task accuracy was measured to hold the candidate to its baseline."
    passed = ours["low"] > theirs["high"]
    verdict = "clearly above" if passed else "not clearly above"
    return passed, f"Accuracy {_accuracy(ours)} is {verdict} the baseline's {_accuracy(theirs)}."


def _no_worse(candidate: Measured, incumbent: Measured, tolerance: float) -> list[tuple[bool, str]]:
    checks = []
    ours, theirs = candidate.get("accuracy"), incumbent.get("accuracy")
    if ours and theirs:
        passed = ours["high"] >= theirs["accuracy"]
        verdict = "no worse than" if passed else "worse than"
        checks.append((passed, f"Accuracy {_accuracy(ours)} is {verdict} the incumbent's {_accuracy(theirs)}."))
    own, other = candidate["bits_per_byte"], incumbent["bits_per_byte"]
    passed = own <= other * (1 + tolerance)
    verdict = "within" if passed else "beyond"
    checks.append((passed, f"{own:.3f} bits per byte are {verdict} {tolerance:.0%} of the incumbent's {other:.3f}."))
    return checks


def _accuracy(value: Measured) -> str:
    return f"{value['accuracy']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def _by_digest(evaluation: Artifact) -> dict[str, Measured]:
    results = json.loads((evaluation.path / "results.json").read_text())
    return {entry["digest"]: entry for entry in results["checkpoints"].values()}


def _incumbent(
    ctx: StageContext, digest: str | None, measured: Mapping[str, Measured], evaluation: Artifact
) -> Measured | None:
    """The incumbent's numbers on the candidate's text and tasks: of this evaluation, or measured now.

    Numbers of another evaluation would be about other text.
    """
    if digest is None or digest in measured:
        return measured.get(digest or "")
    incumbent = ctx.workspace.resolve(digest)
    kinds = {parent.manifest.kind: parent for parent in map(ctx.workspace.resolve, evaluation.manifest.parents)}
    stage = EvaluateStage.model_validate(evaluation.manifest.config)
    job = evaluation_job(
        ctx, stage, {"incumbent": incumbent}, tokens=kinds["tokens"], conversations=kinds.get("conversations")
    )
    run_job(ctx, job)
    results = json.loads((job.output / "results.json").read_text())
    found: Measured = results["checkpoints"]["incumbent"]
    return found
