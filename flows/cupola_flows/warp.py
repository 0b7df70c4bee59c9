"""WARP (Rame et al. 2024, algorithm 1; Gemma 2 technical report, section 4): rounds of several GRPO runs, merged.

A round: `runs` times GRPO from one beginning, each pulled to the moving average of its own policy; SLERP of what they learnt,
layer by layer; then linear interpolation towards the beginning (LITI), which ends `eta` of the way. The next round begins
there. What lies between the last round's beginning and its merged runs is a front of reward over KL.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.reinforce import grpo_data
from cupola_flows.stages import WarpStage
from cupola_flows.training import train_job
from cupola_flows.warp_page import Point, page
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import AnyJob, FrontJob, GrpoData, MergeJob

BEGINNING = "beginning"
"""Name of the initial checkpoint on the front."""


def warp(
    ctx: StageContext, stage: WarpStage, parent: Artifact, conversations: Artifact, reward_model: Artifact | None
) -> Artifact:
    """Carry out all rounds, measure what came of each, draw it, and publish the last round's end."""
    data = grpo_data(stage, conversations, reward_model)
    found: dict[str, Path] = {BEGINNING: parent.path}
    points: dict[str, Point] = {BEGINNING: Point(0, "beginning", 0.0, BEGINNING)}
    start = BEGINNING
    for number in range(1, stage.rounds + 1):
        runs = [_run(ctx, stage, data, found[start], number, run) for run in range(1, stage.runs + 1)]
        for run, folder in enumerate(runs, start=1):
            found[f"round {number}, run {run}"] = folder
            points[f"round {number}, run {run}"] = Point(number, "run", 1.0, start)
        merged = f"round {number}, merged"
        found[merged] = _merge(ctx, stage, f"round{number}/slerp", runs, found[start])
        points[merged] = Point(number, "merged", 1.0, start)
        end = merged
        for share in sorted({*stage.front, stage.eta} if number == stage.rounds else {stage.eta}):
            if share == 1:
                continue  # that is the merged one
            name = f"round {number}, eta {share:g}"
            found[name] = _between(ctx, stage, f"round{number}/liti_{share:g}", found[start], found[merged], share)
            points[name] = Point(number, "between", share, start)
            end = name if share == stage.eta else end
        start = end
    measured = _measure(ctx, stage, data, parent.path, found)
    artifact = _publish(ctx, found[start], [parent, conversations, reward_model], points, measured, start)
    for name, folder in found.items():
        if name != BEGINNING:
            shutil.rmtree(folder, ignore_errors=True)  # what is kept of them is in the store
    return artifact


def _run(ctx: StageContext, stage: WarpStage, data: GrpoData, start: Path, number: int, run: int) -> Path:
    """One GRPO run of a round; no two have the same questions in the same order, or the same answers."""
    ctx.display.note(ctx.name, f"round {number} of {stage.rounds}, run {run} of {stage.runs}")
    seed = ctx.seed + 1000 * number + run
    name = f"round{number}/run{run}"
    return _job(ctx, name, train_job(ctx, stage, data=data, initial=start, output=ctx.folder / name, seed=seed))


def _merge(ctx: StageContext, stage: WarpStage, name: str, runs: list[Path], start: Path) -> Path:
    job = MergeJob(output=ctx.folder / name, checkpoints=tuple(runs), method="slerp", base=start, parallel=stage.layout)
    return _job(ctx, name, job)


def _between(ctx: StageContext, stage: WarpStage, name: str, start: Path, merged: Path, share: float) -> Path:
    job = MergeJob(
        output=ctx.folder / name, checkpoints=(start, merged), weights=(1 - share, share), parallel=stage.layout
    )
    return _job(ctx, name, job)


def _job(ctx: StageContext, name: str, job: AnyJob) -> Path:
    """What a job made. The tracking server knows its numbers by its name."""
    return run_job(replace(ctx, part=f"{name}/"), job).folder


def _measure(
    ctx: StageContext, stage: WarpStage, data: GrpoData, reference: Path, found: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Reward and KL of every checkpoint, on the held-out questions."""
    job = FrontJob(
        output=ctx.folder / "front",
        seed=ctx.seed,
        template_date=ctx.template_date,
        reference=reference,
        checkpoints=found,
        data=replace(data, anchor_rate=0.0),
        batch=stage.batch,
        parallel=stage.layout,
        precision=stage.precision,
    )
    found_at = _job(ctx, "front", job)
    measured: dict[str, dict[str, float]] = json.loads((found_at / "front.json").read_text())
    return measured


def _publish(
    ctx: StageContext,
    folder: Path,
    parents: list[Artifact | None],
    points: dict[str, Point],
    measured: dict[str, dict[str, float]],
    end: str,
) -> Artifact:
    """The checkpoint of the last round's end, with the front beside it."""
    (folder / "front.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "front.html").write_text(page(ctx.name, points, measured), encoding="utf-8")
    metrics = {
        "beginning_reward": measured[BEGINNING]["reward"],
        "reward": measured[end]["reward"],
        "kl": measured[end]["kl"],
    }
    return ctx.publish(folder, parents=[parent for parent in parents if parent], metrics=metrics)
