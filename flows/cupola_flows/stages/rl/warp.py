"""WARP (Rame et al. 2024, algorithm 1; Gemma 2 technical report, section 4): rounds of several GRPO runs, merged.

A round: `runs` times GRPO from one beginning, each pulled to the moving average of its own policy; SLERP of what they
learned, layer by layer; then linear interpolation towards the beginning (LITI), which ends `eta` of the way. The next
round begins there. What lies between the last round's beginning and its merged runs is a Pareto front of reward
over KL.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Stage, Taken
from cupola_flows.stages.rl.own_responses import OwnResponsesStage
from cupola_flows.stages.rl.warp_page import Point, page
from cupola_flows.stages.training import train_job
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import AnyJob, GrpoData, GrpoSettings, MergeJob, ParetoFrontJob

BEGINNING = "beginning"
"""Name of the parent checkpoint on the Pareto front."""


class WarpStage(OwnResponsesStage, GrpoSettings):
    """WARP (Gemma 2's): rounds of several GRPO runs, merged by SLERP of what they learned,
    then drawn back to where they began."""

    kind: Literal["warp"] = "warp"
    kl_coef: float = Field(default=0.1, ge=0)
    """Weight of the KL to the moving average."""
    ema_rate: float = Field(default=0.01, ge=0, lt=1)
    """How far that average moves to the policy after each step."""
    runs: int = Field(default=2, ge=2)
    """Runs of a round, each with prompts and responses of its own; `steps` are one run's."""
    rounds: int = Field(default=2, ge=1)
    """Each begins where the one before ended."""
    eta: float = Field(default=0.3, gt=0, le=1)
    """How far from a round's beginning to its merged runs it ends."""
    interpolation_shares: tuple[float, ...] = (0.1, 0.5, 0.8)
    """Other such shares that are measured in the last round, besides 0, `eta` and 1:
    points of the Pareto front of reward and KL."""

    @model_validator(mode="after")
    def _can_be(self) -> "WarpStage":
        if self.lora:
            raise ValueError("lora: WARP merges whole checkpoints. Leave it out, or use a grpo stage")
        if self.checkpoint.upload:
            raise ValueError("checkpoint.upload: a stage of several jobs cannot be taken up elsewhere. Leave it out")
        if any(not 0 < share < 1 for share in self.interpolation_shares):
            raise ValueError(
                f"interpolation_shares={list(self.interpolation_shares)}: shares lie between 0 (the beginning) and 1 "
                "(the merged runs)"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Carry out all rounds, measure what came of each, draw it, and publish the last round's end."""
        parent = taken.one("parent")
        data = GrpoData(**self.reads(taken, GrpoSettings))
        folders: dict[str, Path] = {BEGINNING: parent.path}
        points: dict[str, Point] = {BEGINNING: Point(0, "beginning", 0.0, BEGINNING)}
        start = BEGINNING
        for number in range(1, self.rounds + 1):
            start = _round(ctx, self, data, number, start, folders, points)
        measured = _measure(ctx, self, data, parent.path, folders)
        artifact = _publish(ctx, folders[start], taken.all(), points, measured, start)
        for name, folder in folders.items():
            if name != BEGINNING:
                shutil.rmtree(folder, ignore_errors=True)  # what is kept of them is in the store
        return artifact

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        return Stage.summary(metrics)


def _round(
    ctx: StageContext,
    stage: WarpStage,
    data: GrpoData,
    number: int,
    start: str,
    folders: dict[str, Path],
    points: dict[str, Point],
) -> str:
    """One round from the checkpoint named `start`; its checkpoints join `found` and `points`.
    Returns its end's name."""
    runs = [_run(ctx, stage, data, folders[start], number, run) for run in range(1, stage.runs + 1)]
    for run, folder in enumerate(runs, start=1):
        folders[f"round {number}, run {run}"] = folder
        points[f"round {number}, run {run}"] = Point(number, "run", 1.0, start)
    merged = f"round {number}, merged"
    folders[merged] = _merge(ctx, stage, f"round{number}/slerp", runs, folders[start])
    points[merged] = Point(number, "merged", 1.0, start)
    end = merged
    for share in sorted({*stage.interpolation_shares, stage.eta} if number == stage.rounds else {stage.eta}):
        if share == 1:
            continue  # that is the merged one
        name = f"round {number}, eta {share:g}"
        folders[name] = _between(ctx, stage, f"round{number}/liti_{share:g}", folders[start], folders[merged], share)
        points[name] = Point(number, "between", share, start)
        end = name if share == stage.eta else end
    return end


def _run(ctx: StageContext, stage: WarpStage, data: GrpoData, start: Path, number: int, run: int) -> Path:
    """One GRPO run of a round; no two have the same prompts in the same order, or the same responses."""
    ctx.display.note(ctx.name, f"round {number} of {stage.rounds}, run {run} of {stage.runs}")
    seed = ctx.seed + 1000 * number + run
    name = f"round{number}/run{run}"
    return _job(ctx, name, train_job(ctx, stage, data=data, parent=start, output=ctx.folder / name, seed=seed))


def _merge(ctx: StageContext, stage: WarpStage, name: str, runs: list[Path], start: Path) -> Path:
    job = MergeJob(output=ctx.folder / name, checkpoints=tuple(runs), method="slerp", base=start, layout=stage.layout)
    return _job(ctx, name, job)


def _between(ctx: StageContext, stage: WarpStage, name: str, start: Path, merged: Path, share: float) -> Path:
    job = MergeJob(
        output=ctx.folder / name, checkpoints=(start, merged), weights=(1 - share, share), layout=stage.layout
    )
    return _job(ctx, name, job)


def _job(ctx: StageContext, name: str, job: AnyJob) -> Path:
    """What a job made. The tracking server knows its numbers by its name."""
    return run_job(replace(ctx, part=f"{name}/"), job).folder


def _measure(
    ctx: StageContext, stage: WarpStage, data: GrpoData, reference: Path, folders: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Reward and KL of every checkpoint, on the held-out prompts."""
    job = ParetoFrontJob(
        output=ctx.folder / "pareto_front",
        seed=ctx.seed,
        template_date=ctx.template_date,
        reference=reference,
        checkpoints=folders,
        data=data.but(ema_rate=0.0),
        batch=stage.batch,
        layout=stage.layout,
        precision=stage.precision,
    )
    folder = _job(ctx, "pareto_front", job)
    measured: dict[str, dict[str, float]] = json.loads((folder / "pareto_front.json").read_text())
    return measured


def _publish(
    ctx: StageContext,
    folder: Path,
    parents: list[Artifact],
    points: dict[str, Point],
    measured: dict[str, dict[str, float]],
    end: str,
) -> Artifact:
    """The checkpoint of the last round's end, with the front beside it."""
    (folder / "pareto_front.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "pareto_front.html").write_text(page(ctx.name, points, measured), encoding="utf-8")
    metrics = {
        "beginning_reward": measured[BEGINNING]["reward"],
        "reward": measured[end]["reward"],
        "kl": measured[end]["kl"],
    }
    return ctx.publish(folder, parents=parents, metrics=metrics)
