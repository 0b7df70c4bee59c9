"""Held-out loss curves of a recipe's training stages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cupola_flows.cli import app
from cupola_flows.recipe.loading import load_recipe
from cupola_flows.reports.curves import draw, heldout_curves
from cupola_flows.stages.checkpoints.upcycle import UpcycleStage
from cupola_flows.stages.pretraining.pretrain import PretrainStage
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.workspace import Workspace

BATCH = {"sequence_length": 256, "global_batch_size": 8}
OLDER = {"dense": [(0, 9.0)], "drawn_anew_0": [(0, 8.0)], "drawn_anew_50": [(0, 7.0), (240, 6.0)]}
LOSSES = {"dense": [(0, 4.0), (240, 3.0)], "drawn_anew_0": [(0, 4.5), (120, 3.5), (240, 2.5)]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with two runs of the recipe `upcycling`, the newer with another seed and without its last stage."""
    ws = Workspace.open(tmp_path / "home")
    for seed, stages in enumerate((OLDER, LOSSES)):
        whole = ws.registry.start_run("upcycling", config={"seed": seed})
        for stage, losses in stages.items():
            ws.registry.finish_run(
                ws.registry.start_run("upcycling", stage, whole), "completed", artifact=publish(ws, stage, seed, losses)
            )
        ws.registry.finish_run(whole, "completed")
    return ws


def publish(ws: Workspace, stage: str, seed: int, losses: list[tuple[int, float]]) -> str:
    """Publish the result of a training stage; returns its digest."""
    mark = f"{stage}-{seed}"
    folder = ws.folder(f"made/{mark}")
    (folder / "weights").write_text(mark)
    made = ws.publish(
        folder, kind="checkpoint", stage=stage, recipe="upcycling", fingerprint=mark, config={"batch": BATCH}
    )
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    lines += [{"event": "evaluate", "step": step, "heldout_loss": loss} for step, loss in losses]
    job = ws.work_folder(mark) / "job"
    job.mkdir()
    (job / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return made.digest


def test_curves_come_from_the_newest_run_only(workspace: Workspace, tmp_path: Path) -> None:
    found = heldout_curves(workspace, load_recipe("upcycling", [])).by_stage
    assert found == {name: [(step * 256 * 8 / 1e6, loss) for step, loss in losses] for name, losses in LOSSES.items()}
    draw(found, "Held-out loss", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in LOSSES)
    lines = re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]*)" clip-path[^>]*stroke-width: 1\.5', drawn)
    assert [line.count("L") + 1 for line in lines] == [len(losses) for losses in LOSSES.values()]
    draw(found, "Held-out loss", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_an_older_run_can_be_chosen_by_its_id(workspace: Workspace) -> None:
    recipe = load_recipe("upcycling", [])
    older = next(run for run in workspace.registry.runs() if run.config == {"seed": 0})
    found = heldout_curves(workspace, recipe, run=older.id)
    assert found.run.id == older.id
    assert {name: curve[0][1] for name, curve in found.by_stage.items()} == {
        "dense": 9.0, "drawn_anew_0": 8.0, "drawn_anew_50": 7.0,
    }  # fmt: skip
    with pytest.raises(NotFoundError, match="--run no-such: matches no run of upcycling"):
        heldout_curves(workspace, recipe, run="no-such")


def test_a_stage_that_was_rerun_alone_is_not_plotted_with_those_of_another_run(workspace: Workspace) -> None:
    alone = workspace.registry.start_run("upcycling", config={"seed": 2})
    stage = workspace.registry.start_run("upcycling", "dense", alone)
    digest = publish(workspace, "dense", 2, [(0, 5.0)])
    workspace.registry.finish_run(stage, "completed", artifact=digest)
    assert heldout_curves(workspace, load_recipe("upcycling", [])).by_stage == {"dense": [(0.0, 5.0)]}


def test_the_command_prints_the_table_and_plots_the_curves(workspace: Workspace, tmp_path: Path) -> None:
    arguments = ["curves", "upcycling", "--workspace", str(workspace.root), "--stage", "drawn_anew_0"]
    shown = CliRunner().invoke(app, [*arguments, "--json", "--to", str(tmp_path / "plot.svg")])
    assert shown.exit_code == 0
    [row] = json.loads(shown.stdout)
    assert row["run"] in {run.id for run in workspace.registry.runs()}
    assert (row["stage"], row["first"], row["last"], row["Mtokens"]) == ("drawn_anew_0", 4.5, 2.5, 0.492)
    assert "<svg " in (tmp_path / "plot.svg").read_text()
    refused = CliRunner().invoke(app, [*arguments, "--to", str(tmp_path / "plot.txt")])
    assert isinstance(refused.exception, ConfigError)
    assert refused.stdout == ""


def test_what_cannot_be_plotted_is_refused_in_one_line(workspace: Workspace) -> None:
    recipe = load_recipe("upcycling", [])
    with pytest.raises(ConfigError, match="--stage upcycle_0: not a training stage of upcycling"):
        heldout_curves(workspace, recipe, ["upcycle_0"])
    with pytest.raises(NotFoundError, match=r"on this machine yet\. Start with: cupola run upcycling"):
        heldout_curves(workspace, recipe, ["drawn_anew_100"])
    with pytest.raises(ConfigError, match=r"--to plot.txt: unsupported image format. Use one of: .*\.png"):
        draw({"dense": [(0.0, 5.0)]}, "", Path("plot.txt"))


def test_the_recipe_continues_tinys_dense_model_in_four_ways() -> None:
    tiny, ours = load_recipe("tiny", []), load_recipe("upcycling", [])
    assert ours.seed == tiny.seed
    assert all(ours.stages[name] == tiny.stages[name] for name in ("prepare", "pretrain"))  # run once for both
    ways = [stage for name, stage in ours.stages.items() if isinstance(stage, PretrainStage) and name != "pretrain"]
    assert len({(stage.steps, stage.batch, stage.optimizer) for stage in ways}) == 1
    upcycled = [stage for stage in ours.stages.values() if isinstance(stage, UpcycleStage)]
    assert [stage.reinit_fraction for stage in upcycled] == [0, 0.5, 1]
    assert {stage.moe for stage in upcycled} == {tiny.stages["upcycle"].moe}  # type: ignore[attr-defined]
