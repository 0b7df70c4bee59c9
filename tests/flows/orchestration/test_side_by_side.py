"""Two trainings of one recipe at the same time, under a real Prefect server and without one."""

import json
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TWO = """
  pretrain_b:
    kind: pretrain
    tokens: prepare
    seed: 5
    model: {hidden_size: 32, num_layers: 2, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 64,
            max_position_embeddings: 128}
    batch: {sequence_length: 64, micro_batch_size: 4, global_batch_size: 4}
    steps: 20
    checkpoint: {every: 10}
"""


@pytest.fixture
def two(recipe: Path) -> Path:
    """A recipe with two trainings of one rank each."""
    recipe.write_text(recipe.read_text().replace("layout: {tp: 2}", "layout: {tp: 1}") + TWO)
    return recipe


def times(cupola: Any) -> list[tuple[float, float]]:
    """First and last line of each training's metrics."""
    spans = []
    for file in cupola.workspace.glob("work/*/job/metrics.jsonl"):
        lines = [json.loads(line)["time"] for line in file.read_text().splitlines() if line.endswith("}")]
        spans += [(min(lines), max(lines))] if lines else []
    return sorted(spans)


def trained(cupola: Any, steps: int) -> bool:
    """Whether both trainings have made some steps."""
    files = list(cupola.workspace.glob("work/*/job/metrics.jsonl"))
    return len(files) == 2 and all(file.read_text().count('"event": "step"') >= steps for file in files)


def test_two_trainings_run_at_once_each_in_its_flow_run_and_give_the_artifacts_of_a_sequence(
    cupola: Any, two: Path, tmp_path: Path
) -> None:
    done = cupola("run", str(two))
    assert done.returncode == 0, done.stdout + done.stderr
    (_, first_end), (second_start, _) = times(cupola)
    assert second_start < first_end, "they overlap"
    query = (
        "select flow.name, flow_run.name, state_type, parent_task_run_id from flow_run join flow on flow.id = flow_id"
    )
    connection = sqlite3.connect(cupola.workspace / "prefect" / "prefect.db")
    rows = connection.execute(query).fetchall()
    connection.close()
    assert sorted(row[:3] for row in rows) == [
        ("lifecycle", "short", "COMPLETED"), ("prepare", "prepare", "COMPLETED"),
        ("pretrain", "pretrain", "COMPLETED"), ("pretrain", "pretrain_b", "COMPLETED"),
    ]  # fmt: skip
    assert len({row[3] for row in rows}) == 4, "each stage is a task of its own in the run's graph"
    alone = replace(cupola, workspace=tmp_path / "alone", variables={"CUPOLA_MAX_PROCESSES": "1"})
    assert alone("run", str(two), "--no-prefect").returncode == 0
    assert alone.published() == cupola.published()
    (_, first_end), (second_start, _) = times(alone)
    assert first_end <= second_start


def test_ctrl_c_ends_both_after_they_have_saved_and_the_same_command_resumes(
    cupola: Any, two: Path, eventually: Any, undisturbed: Any
) -> None:
    long = ("--set", "stages.pretrain.steps=600", "--set", "stages.pretrain_b.steps=600")
    run = cupola.start("run", str(two), "--no-prefect", *long)
    eventually(lambda: trained(cupola, 3), 300, "steps of both")
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=90)
    assert run.returncode == 130, printed
    assert cupola.processes() == []
    rows = {row["stage"]: row["status"] for row in cupola.json("runs")}
    assert rows == {"(all)": "cancelled", "prepare": "completed", "pretrain": "cancelled", "pretrain_b": "cancelled"}
    for file in cupola.workspace.glob("work/*/job/metrics.jsonl"):
        assert json.loads(file.read_text().splitlines()[-1])["status"] == "preempted"
    done = cupola("run", str(two), "--no-prefect", *long)
    assert done.returncode == 0, done.stderr
    assert cupola.published() == undisturbed(two, *long)


def test_two_commands_share_this_machine_and_the_second_waits_and_goes_on(
    cupola: Any, recipe: Path, eventually: Any
) -> None:
    """Each in a workspace of its own would not know of the other; in one workspace they count their ranks together."""
    first = cupola.start("run", str(recipe), "--set", "stages.pretrain.steps=1500")
    eventually(lambda: len(times(cupola)) == 1, 300, "the first training")
    second = cupola.start("run", str(recipe), "--set", "stages.pretrain.steps=20")
    printed, _ = second.communicate(timeout=600)
    assert second.returncode == 0, printed
    assert "pretrain: waiting for 2 ranks of this machine: 2 of 2 are taken." in printed
    assert first.wait(60) == 0
    first.communicate()
    (_, first_end), (second_start, _) = times(cupola)
    assert first_end <= second_start
