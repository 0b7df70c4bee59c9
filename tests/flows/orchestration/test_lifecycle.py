"""The whole lifecycle of a small model, run by the real command under a real Prefect server, and its records."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.tracking.spool import Spool
from cupola_platform.workspace import Workspace

STAGES = [
    *("prepare", "pretrain", "upcycle", "pretrain_moe", "conversations", "sft", "preferences", "dpo", "evaluate"),
    "promote",
]
MOST_FILES = 30
pytestmark = pytest.mark.timeout(900)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def in_recipe_order(names: list[str], whole: str) -> bool:
    """Whether the run of the whole recipe comes first, then each stage once, in order; conversations need no other
    stage, and run beside whichever leaves room."""
    first, *stages = names
    return (
        first == whole
        and sorted(stages) == sorted(STAGES)
        and [name for name in stages if name != "conversations"] == [name for name in STAGES if name != "conversations"]
        and stages.index("conversations") < stages.index("sft")
    )


def test_every_stage_completes_and_the_page_shows_its_results(life: Any) -> None:
    page = (life.workspace / "page.txt").read_text()
    assert in_recipe_order([row["stage"] for row in reversed(life.json("runs"))], "(all)")
    assert all(row["status"] == "completed" for row in life.json("runs"))
    for part in (
        "held-out loss",
        "bits per byte",
        "accuracy, 95% interval",
        "held-out margin",
        "champion",
        "def main(",
    ):
        assert part in page, part
    assert "cupola up" in page
    assert "cupola lineage" in page


def test_training_lowers_the_loss_and_stages_give_the_expected_artifacts(life: Any) -> None:
    artifacts = {row["stage"]: row["id"] for row in life.json("artifacts")}
    pretrained = life.json("show", artifacts["pretrain"])
    assert pretrained["kind"] == "checkpoint"
    assert pretrained["metrics"]["final_heldout_loss"] < pretrained["metrics"]["initial_heldout_loss"] - 0.5
    tuned = life.json("show", artifacts["sft"])
    assert tuned["metrics"]["final_heldout_loss"] < tuned["metrics"]["initial_heldout_loss"] - 0.5
    model = json.loads((Path(tuned["path"]) / "model.json").read_text())
    assert model["moe"]["num_experts"] == 4
    decision = json.loads((Path(life.json("show", artifacts["promote"])["path"]) / "decision.json").read_text())
    assert decision["candidate"].startswith(artifacts[decision["stage"]])
    assert decision["promoted"] == ("champion" in life.json("show", decision["candidate"])["aliases"])


def test_prefect_has_a_flow_of_flows_with_results_on_their_pages(life: Any) -> None:
    database = life.workspace / "prefect" / "prefect.db"
    runs = rows(
        database, "select name, state_type, parent_task_run_id is null from flow_run order by expected_start_time"
    )
    assert in_recipe_order([name for name, *_ in runs], "smoke")
    assert [rest for _, *rest in runs] == [["COMPLETED", 1]] + [["COMPLETED", 0]] * len(STAGES)
    keys = {key for (key,) in rows(database, "select key from artifact")}
    assert {"pretrain-metrics", "pretrain-moe-artifact", "promote-artifact", "smoke-results"} <= keys


def test_mlflow_has_a_parent_run_with_nested_stages_and_every_logged_step(life: Any) -> None:
    database = life.workspace / "mlflow.db"
    names = rows(database, "select name, status from runs order by start_time")
    assert in_recipe_order([name for name, _ in names], "smoke")
    assert {status for _, status in names} == {"FINISHED"}
    nested = rows(database, "select count(*) from tags where key = 'mlflow.parentRunId'")
    assert nested == [(len(STAGES),)]
    steps = rows(
        database,
        "select count(*) from metrics join runs on metrics.run_uuid = runs.run_uuid "
        "where runs.name = 'pretrain' and key = 'loss'",
    )
    assert steps == [(60,)]
    assert not list((life.workspace / "spool").iterdir())


def test_each_run_of_a_stage_names_its_prefect_and_mlflow_runs(life: Any) -> None:
    linked = rows(
        life.workspace / "registry.db",
        "select count(*) from run where prefect_flow_run_id is not null and mlflow_run_id is not null",
    )
    assert linked == [(len(STAGES) + 1,)]


def test_the_lineage_of_the_last_checkpoint_reaches_the_source_files(life: Any) -> None:
    dpo = next(row["id"] for row in life.json("artifacts") if row["stage"] == "dpo")
    shown = life("lineage", dpo).stdout
    for part in ("dpo", "preferences", "sft", "upcycle", "pretrain", "tokens", "source library"):
        assert part in shown, part
    tree = life.json("lineage", dpo)
    while tree["parents"]:
        tree = tree["parents"][0]
    assert tree["kind"] == "tokens"
    assert tree["sources"][0]["files"] > 10


def test_two_checkpoints_are_compared_by_the_evaluation_that_measured_both(life: Any) -> None:
    ids = {row["stage"]: row["id"] for row in life.json("artifacts")}
    comparison = life.json("compare", ids["pretrain_moe"], ids["sft"])
    assert comparison["same_evaluation"]
    before, after = comparison["checkpoints"]
    assert before["evaluation"]["accuracy"]["low"] <= after["evaluation"]["accuracy"]["high"]
    assert any("sft" not in line and "conversations" in line for line in after["only_here"])
    refused = life("compare", ids["prepare"], ids["sft"])
    assert refused.returncode == 2


def test_the_weights_of_two_checkpoints_are_compared_layer_by_layer(life: Any) -> None:
    ids = {row["stage"]: row["id"] for row in life.json("artifacts")}
    found = life.json("checkpoint", "diff", ids["pretrain"], ids["upcycle"])
    unchanged = {row["name"]: row["distance"] for row in found["tensors"]}
    assert unchanged["model.layers.0.self_attn.q_proj.weight"] == 0, "upcycling copies attention"
    assert any(".mlp.experts." in name for name in found["only_b"])
    shown = life("checkpoint", "diff", ids["pretrain_moe"], ids["sft"]).stdout
    assert re.search(r"layer 1 +\d+\.\d\d% +\d+\.\d\d%", shown)
    assert re.search(r"Total [1-9]\d*\.\d\d%|Total 0\.\d[1-9]%|Total 0\.[1-9]\d%", shown)


def test_the_second_run_reuses_every_stage_within_thirty_seconds_and_starts_no_server(life: Any) -> None:
    log = life.workspace / "logs" / "prefect-run.log"
    before = log.stat().st_size
    started = time.monotonic()
    done = life("run", "smoke")
    assert time.monotonic() - started < 30
    assert done.returncode == 0, done.stderr
    assert "all 10 stages are up to date" in done.stdout
    assert log.stat().st_size == before
    newest = life.json("runs", "--limit", "11")
    assert {row["status"] for row in newest} == {"reused"}


def test_a_run_with_nothing_to_do_sends_the_pending_mlflow_data_of_earlier_runs(life: Any) -> None:
    workspace = Workspace.open(life.workspace)
    lost = workspace.registry.start_run("smoke", "sft")
    workspace.registry.finish_run(lost, "failed")
    spool = Spool(life.workspace / "spool")
    spool.open_run(lost, "sft", None, {}, {})
    spool.end_run(lost, "failed", {}, {})
    away = replace(life, variables={"CUPOLA_MLFLOW_TRACKING_URI": "http://127.0.0.1:1"})("tracking", "flush")
    assert away.returncode == 2
    assert away.stderr.startswith("cupola: error: MLflow did not get everything (")
    assert away.stderr.endswith(
        f": 1 runs with 0 lines of metrics wait in {spool.folder}. "
        "The same command, `cupola up` or `cupola tracking flush` sends them.\n"
    )
    assert away.stderr.count("\n") == 1
    done = life("run", "smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "Nothing to do: all 10 stages are up to date.\nSent pending MLflow data of 1 earlier runs.\n"
    )
    assert rows(life.workspace / "mlflow.db", "select count(*) from runs where status = 'FAILED'") == [(1,)]
    assert not list(spool.folder.iterdir())
    assert life("tracking", "flush").stdout == "Nothing to send.\n"


def test_a_flipped_byte_is_refused_by_the_files_name(life: Any, tmp_path: Path) -> None:
    import shutil

    sft = next(row["id"] for row in life.json("artifacts") if row["stage"] == "sft")
    copy = tmp_path / "copy"
    shutil.copytree(life.json("show", sft)["path"], copy)
    assert life("checkpoint", "verify", str(copy)).returncode == 0
    victim = max((file for file in (copy / "state").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    refused = life("checkpoint", "verify", str(copy))
    assert refused.returncode == 2
    assert victim.name in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_exported_checkpoint_is_loaded_by_transformers_alone(life: Any, tmp_path: Path) -> None:
    import subprocess

    sft = next(row["id"] for row in life.json("artifacts") if row["stage"] == "sft")
    done = life("checkpoint", "export", sft, "--to", str(tmp_path / "exported"))
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]); t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(type(m).__name__, t.decode(t('def main').input_ids))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "exported")], check=True, capture_output=True, text=True
    )
    assert loaded.stdout.split(maxsplit=1) == ["Qwen2MoeForCausalLM", "def main\n"]
    again = life("checkpoint", "export", sft, "--to", str(tmp_path / "exported"))
    assert again.returncode == 2
    assert "not empty. Give a new or empty folder." in again.stderr


def test_a_checkpoint_continues_a_text(life: Any) -> None:
    sft = next(row["id"] for row in life.json("artifacts") if row["stage"] == "sft")
    done = life("checkpoint", "generate", sft, "--prompt", "def main(", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--method", "nkt", "--lengths", "256"), "method 'nkt' is not known. Known: none, linear, yarn, ntk"),
        (("--lengths", "many"), "--lengths: 'many': input should be a valid integer"),
    ],
)
def test_a_user_error_about_long_contexts_is_one_line_with_exit_status_two(
    life: Any, arguments: tuple[str, ...], line: str
) -> None:
    checkpoint = next(row["id"] for row in life.json("artifacts") if row["stage"] == "pretrain")
    done = life("checkpoint", "long-context", checkpoint, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    [said] = done.stderr.splitlines()
    assert line in said


@pytest.mark.slow  # a traced run
def test_a_reader_follows_a_command_to_the_gradient_of_its_loss_through_few_files(
    life: Any, new_command: Any, tmp_path: Path
) -> None:
    copy = new_command(tmp_path / "home")
    shutil.copytree(life.workspace, copy.workspace, ignore=shutil.ignore_patterns("mlflow*", "*.lock"))
    run = ["run", "smoke", "--set", "stages.sft.steps=3", "--only", "sft"]
    stacks = journey(tmp_path / "command.json", copy.environment(), "command", *run)
    job = max(copy.workspace.glob("work/*/job/job.json"), key=lambda path: path.stat().st_mtime)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    stacks |= journey(tmp_path / "job.json", os.environ | rank, "job", str(job))
    assert len(stacks) == 16, f"stations passed: {list(stacks)}"
    files = sorted({file for files in stacks.values() for file in files})
    assert len(files) <= MOST_FILES, files


def journey(out: Path, environment: dict[str, str], *arguments: str) -> dict[str, list[str]]:
    """Files by station: see journey_probe.py."""
    probe = Path(__file__).with_name("journey_probe.py")
    done = subprocess.run(
        [sys.executable, probe, out, *arguments],
        check=False, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert out.exists(), f"{done.stdout}\n{done.stderr}"
    stacks: dict[str, list[str]] = json.loads(out.read_text())
    return stacks


def test_no_process_is_left(life: Any) -> None:
    assert life.processes() == []
