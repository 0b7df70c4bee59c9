"""WARP (Rame et al. 2024, algorithm 1; Gemma 2 technical report, section 4): rounds of several GRPO runs, merged.

In a round, `runs` GRPO runs start from the same checkpoint, each with a KL penalty to its policy's moving average.
Their task vectors are merged by SLERP, layer by layer. Linear interpolation (LITI) then goes `eta` of the way from the
start to the merged model, where the next round starts. Between the last round's start and its merged model lies a
Pareto front of reward over KL.
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
    """WARP, as in Gemma 2: rounds of GRPO runs, merged by SLERP and interpolated towards their start."""

    kind: Literal["warp"] = "warp"
    kl_coef: float = Field(default=0.1, ge=0)
    """Weight of the KL penalty to the moving average."""
    ema_rate: float = Field(default=0.01, ge=0, lt=1)
    """Rate at which the average follows the policy, per step."""
    runs: int = Field(default=2, ge=2)
    """Runs per round, each with its own prompts and responses. `steps` are per run."""
    rounds: int = Field(default=2, ge=1)
    """Number of rounds; each starts where the previous one ended."""
    eta: float = Field(default=0.3, gt=0, le=1)
    """Share of the way from a round's start to its merged model at which it ends."""
    interpolation_shares: tuple[float, ...] = (0.1, 0.5, 0.8)
    """Further shares to measure in the last round, besides 0, `eta` and 1, as points of the Pareto front."""

    @model_validator(mode="after")
    def _can_be(self) -> "WarpStage":
        if self.lora:
            raise ValueError("lora: WARP merges full checkpoints. Leave it out, or use a grpo stage")
        if self.checkpoint.upload:
            raise ValueError(
                "checkpoint.upload: a stage with several jobs cannot resume on another machine. Leave it out"
            )
        if any(not 0 < share < 1 for share in self.interpolation_shares):
            raise ValueError(
                f"interpolation_shares={list(self.interpolation_shares)}: shares must be between 0 (the start) and 1 "
                "(the merged model)"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Run all rounds, measure and plot their checkpoints, and publish the result of the last round."""
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
                shutil.rmtree(folder, ignore_errors=True)  # the results are in the store
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
    """Run one round from the checkpoint named `start`, and add its checkpoints to `folders` and `points`.
    Returns the name of its result."""
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
            continue  # the merged model itself
        name = f"round {number}, eta {share:g}"
        folders[name] = _between(ctx, stage, f"round{number}/liti_{share:g}", folders[start], folders[merged], share)
        points[name] = Point(number, "between", share, start)
        end = name if share == stage.eta else end
    return end


def _run(ctx: StageContext, stage: WarpStage, data: GrpoData, start: Path, number: int, run: int) -> Path:
    """One GRPO run of a round. Each run has its own order of prompts and its own responses."""
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
    """Run a job, with its name as prefix of its metrics. Returns its result folder."""
    return run_job(replace(ctx, part=f"{name}/"), job).folder


def _measure(
    ctx: StageContext, stage: WarpStage, data: GrpoData, reference: Path, folders: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Measure reward and KL of every checkpoint on the held-out prompts."""
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
    """Publish the checkpoint of the last round, with the Pareto front."""
    (folder / "pareto_front.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "pareto_front.html").write_text(page(ctx.name, points, measured), encoding="utf-8")
    metrics = {
        "beginning_reward": measured[BEGINNING]["reward"],
        "reward": measured[end]["reward"],
        "kl": measured[end]["kl"],
    }
    return ctx.publish(folder, parents=parents, metrics=metrics)
