"""The number of files to read to follow `cupola run ... --set stages.sft.steps=3` to the gradient of the SFT loss.

Counts the files on the call stacks of a real run at every station on the way.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).with_name("journey_probe.py")
MOST_FILES = 30
TO_THE_JOB = {
    "the recipe is read": "recipe/loading.py:load_recipe",
    "its stages are sorted": "recipe/schema.py:order",
    "it is validated": "recipe/validation.py:validate",
    "earlier results are recognised": "runs/fingerprint.py:fingerprint",
    "the stage runs": "stages/posttraining/sft.py:run",
    "its job starts": "launch/local.py:start",
}
TO_THE_GRADIENT = {
    "the job is read": "config/jobs.py:read_job",
    "the objective is found": "training/objective_table.py:build_objective",
    "a conversation becomes tokens and a loss mask": "data/chat.py:encode_conversation",
    "the model is built": "cupola_trainer/models/__init__.py:build",
    "the optimizer is built": "cupola_trainer/optim/__init__.py:build",
    "a row is sampled": "objectives/sft.py:sample",
    "rows become a batch": "objectives/sft.py:collate",
    "the model gives token losses": "models/output.py:forward",
    "the loss is computed": "objectives/sft.py:loss",
    "the gradient": "torch/autograd/__init__.py:backward",
}


@pytest.mark.timeout(600)
def test_few_files_lead_from_a_run_to_its_gradient(life: Any, new_command: Any, tmp_path: Path) -> None:
    workspace = tmp_path / "home"
    shutil.copytree(life.workspace, workspace, ignore=shutil.ignore_patterns("mlflow*", "*.lock"))
    command = new_command(workspace)
    run = ["cupola", "run", "smoke", "--set", "stages.sft.steps=3", "--only", "sft"]
    stacks = probed(tmp_path / "run.json", TO_THE_JOB, command.environment(), *run)
    job = max(workspace.glob("work/*/job/job.json"), key=lambda path: path.stat().st_mtime)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    stacks |= probed(tmp_path / "job.json", TO_THE_GRADIENT, os.environ | rank, "job", str(job))
    files = sorted({file for files in stacks.values() for file in files})
    assert len(files) <= MOST_FILES, files


def probed(out: Path, stations: dict[str, str], environment: dict[str, str], *arguments: str) -> dict[str, list[str]]:
    """Files by station; fails if a station is not reached."""
    done = subprocess.run(
        [sys.executable, PROBE, out, ",".join(stations.values()), *arguments],
        check=False, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    stacks: dict[str, list[str]] = json.loads(out.read_text()) if out.exists() else {}
    missed = [station for station, where in stations.items() if where not in stacks]
    assert not missed, f"{missed}\n{done.stdout}\n{done.stderr}"
    return stacks
