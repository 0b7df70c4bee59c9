"""Preparation, evaluation and sampling on a real Slurm cluster: over two nodes, by the same settings as training."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.stages.base import Stage
from cupola_flows.stages.table import kinds

CLUSTER = """
[clusters.test]
launcher = "slurm"
nodes = 4
ranks_per_node = 1
interface = "lo"
setup = ["touch {folder}/nodes/$SLURM_JOB_NAME-$SLURMD_NODENAME"]
environment = {{ OMP_NUM_THREADS = "1" }}
"""
MORE = """
  conversations: {tasks: [{name: gcd, count: 24, config: {max_value: 20}}], heldout_per_task: 8}
  sft:
    parent: pretrain
    steps: 2
    batch: {sequence_length: 128, micro_batch_size: 2, global_batch_size: 2}
  preferences: {parent: sft, layout: {dp: 2}, samples_per_prompt: 2, max_prompts: 4, max_new_tokens: 4}
  evaluate: {checkpoints: [sft], layout: {tp: 2}, max_new_tokens: 4}
"""
STARTS_NO_JOBS = {"conversations", "pairs"}


@pytest.fixture
def on_cluster(cupola: Any, slurm: Any) -> Any:
    folder = cupola.workspace.parent
    (folder / "nodes").mkdir()
    (folder / "cupola.toml").write_text(CLUSTER.format(folder=folder))
    return replace(cupola, variables=dict(slurm.environment))


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_kind_of_stage_that_starts_jobs_sends_them_to_its_cluster(kind: str) -> None:
    of: type[Stage] = kinds()[kind]
    stage = of.model_construct(kind=kind, run_on=None)
    elsewhere = stage.cluster("test", {})
    assert elsewhere == (None if kind in STARTS_NO_JOBS else "test")
    assert stage.cluster(None, {}) is None


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_preparation_over_two_nodes_gives_the_digest_of_this_machine(
    on_cluster: Any, recipe: Path, texts: Path, undisturbed: Callable[..., dict[str, str]]
) -> None:
    for number in range(6):  # several pieces of sources, a task each
        (texts / f"more-{number}.py").write_text((texts / "email-message.py").read_text() * 30)
    only = ("--only", "prepare", "--set", "stages.prepare.corpus.executor.workers=4")
    done = on_cluster("run", str(recipe), "--run-on", "test", "--no-prefect", *only)
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = {path.name.rpartition("-")[2] for path in (on_cluster.workspace.parent / "nodes").glob("cupola-read_and*")}
    assert len(nodes) >= 2
    assert on_cluster.published() == undisturbed(recipe, *only)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_evaluation_and_sampling_run_over_two_nodes_and_measure_the_same(
    on_cluster: Any, recipe: Path, undisturbed: Callable[..., dict[str, str]]
) -> None:
    recipe.write_text(recipe.read_text() + MORE)
    local = ("--only", "prepare,pretrain,conversations,sft")
    first = on_cluster("run", str(recipe), "--no-prefect", *local)
    assert first.returncode == 0, first.stdout + first.stderr
    done = on_cluster("run", str(recipe), "--run-on", "test", "--no-prefect", "--only", "evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    sampled = on_cluster("run", str(recipe), "--run-on", "test", "--no-prefect", "--only", "preferences")
    assert "0 of 8 sampled responses are right" in sampled.stderr, "a model of two steps"
    log = "".join(path.read_text() for path in (on_cluster.workspace / "logs").glob("*.log"))
    assert len(re.findall(r"2 ranks on n\d,n\d", log)) == 2
    assert on_cluster.published() == undisturbed(recipe, "--only", f"{local[1]},evaluate")
