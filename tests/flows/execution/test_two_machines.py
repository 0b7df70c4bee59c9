"""A run is killed in a step, in a save or in an upload, and resumes from the store on another machine: the results
equal those of an uninterrupted twin bit for bit."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

EVERY = 4
Eventually = Callable[[Callable[[], bool], float, str], None]


def command_line(recipe: Path, steps: int) -> list[str]:
    settings = (f"steps={steps}", f"checkpoint.every={EVERY}", "checkpoint.upload=true", "checkpoint.upload_wait=60")
    return [
        "run",
        str(recipe),
        "--no-prefect",
        *(word for each in settings for word in ("--set", f"stages.pretrain.{each}")),
    ]


def numbers(machine: Any) -> list[tuple[Any, ...]]:
    """Metrics that must be equal bit for bit; JSON keeps exact float values."""
    names = ("step", "loss", "grad_norm", "lr", "consumed_samples")
    return [tuple(line[name] for name in names) for line in machine.events() if line["event"] == "step"]


def weights(machine: Any) -> dict[str, str]:
    """Digests of every weight and moment that the stage published."""
    rows = [row for row in machine.json("artifacts") if row["stage"] in ("pretrain", "pretrain-optimizer")]
    assert sorted(row["kind"] for row in rows) == ["checkpoint", "optimizer"]
    files = [(row["kind"], file) for row in rows for file in machine.json("show", row["id"])["files"]]
    return {f"{kind} {file['path']}": file["blake3"] for kind, file in files if file["path"].endswith(".bin")}


def uploads(machine: Any) -> list[Path]:
    """Copies that are being staged or uploaded."""
    return list(machine.workspace.glob("work/*/job.upload/*"))


def saves(machine: Any) -> list[Path]:
    return list(machine.workspace.glob("work/*/job/checkpoints/.step_*.partial"))


def there(machine: Any, place: str) -> bool:
    """Whether this start has uploaded a checkpoint, so that the next one makes progress, and has reached the place."""
    done = [path for path in machine.workspace.glob("work/*/job/uploads.jsonl") if '"uploaded"' in path.read_text()]
    at = {"in a step": [machine], "in a save": saves(machine), "in an upload": uploads(machine)}[place]
    return bool(done and at)


def kill(machine: Any, run: Any, draw: random.Random) -> str:
    """Kill every process of a machine at a random place. Returns the place: in a step, in a save, in an upload."""
    place = draw.choice(["in a step", "in a save", "in an upload"])
    delay = draw.uniform(0, 0.5 if place == "in a step" else 0.02)
    until = time.monotonic() + 200
    while time.monotonic() < until and run.poll() is None:
        if there(machine, place):
            time.sleep(delay)
            for process in machine.processes():
                process.kill()
            run.communicate()
            return place
        time.sleep(0.002)
    raise AssertionError(f"the run ended before it was killed: {run.communicate()[0]}")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_on_two_machines_leave_no_trace(
    cupola: Any, recipe: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    steps, kills, draw = 400, 3, random.Random(seed)
    twin = replace(cupola, workspace=tmp_path / "twin")
    done = twin(*command_line(recipe, steps), timeout=600)
    assert done.returncode == 0, done.stderr
    expected = numbers(twin), weights(twin)

    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/{tmp_path.name}")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    machines = [replace(cupola, workspace=tmp_path / name) for name in ("one", "two")]
    printed = ""
    try:
        for number in range(kills):
            machine = machines[number % 2]
            shutil.rmtree(machine.workspace, ignore_errors=True)  # only the store outlives a machine
            kill(machine, machine.start(*command_line(recipe, steps)), draw)
        last = machines[kills % 2]
        shutil.rmtree(last.workspace, ignore_errors=True)
        done = last(*command_line(recipe, steps), timeout=600)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    finally:
        for process in [process for machine in machines for process in machine.processes()]:
            process.kill()
    assert "pretrain: resuming from step " in printed
    assert (numbers(last), weights(last)) == expected
    assert expected[1]
    left = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/progress/")
    assert left.get("Contents", []) == [], "the stage is done and its artifact published"
