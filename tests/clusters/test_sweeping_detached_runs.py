"""The sweeper asks a run's cluster before it calls the run dead: a real Slurm job, a real Prefect server."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.flows.servers.test_sweeping import Prefect, kill, prefect, process, tag_of

from cupola_flows.servers import sweeping
from cupola_flows.servers.sweeping import Sweeper
from cupola_platform.clusters import SlurmCluster
from cupola_platform.launch.living import living_job
from cupola_platform.launch.slurm.launcher import SlurmLauncher
from cupola_platform.workspace import Workspace

__all__ = ["prefect", "process"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CLUSTER = SlurmCluster(launcher="slurm", nodes=4, ranks_per_node=1, interface="lo")
LEAVES = """
import sys
from pathlib import Path
from cupola_platform.registry import Registry
registry, (folder, number) = Registry(sys.argv[1]), sys.argv[2:]
run = registry.start_run("short", "pretrain")
registry.update_run(run, work_folder=Path(folder))
registry.leases.take(Path(folder).name, "h")
registry.leases.note_job(Path(folder).name, "h", "test", number)
print(run)
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "cupola.toml").write_text(
        '[clusters.test]\nlauncher = "slurm"\nnodes = 4\nranks_per_node = 1\ninterface = "lo"\n'
    )
    monkeypatch.chdir(tmp_path)
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def job(on_slurm: Any, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job that goes on in the work folder of a stage."""
    (tmp_path / "waiting_rank.py").write_text("import time\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    folder = workspace.work_folder("f" * 64) / "job"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    job = SlurmLauncher("test", CLUSTER, module="waiting_rank").start(
        folder / "job.json", processes=1, log=tmp_path / "log"
    )
    yield job
    job.stop(0)


def left_run(workspace: Workspace, job: Any, flow_run: str) -> str:
    """The registry's run of a process that has ended, and left the job to itself."""
    run = subprocess.run(
        [sys.executable, "-c", LEAVES, workspace.registry.url, str(workspace.work_folder("f" * 64)), job.number],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    workspace.registry.update_run(run, prefect_flow_run_id=flow_run)
    return run


def test_a_run_whose_job_lives_is_detached_and_failed_once_the_job_has_ended(
    prefect: Prefect, workspace: Workspace, process: Any, job: Any, monkeypatch: pytest.MonkeyPatch, slurm: Any
) -> None:
    monkeypatch.setattr(sweeping, "ASK_EVERY", 0.0)
    monkeypatch.setattr(sweeping, "living_job", functools.partial(living_job, patience=3))
    victim = process()
    flow_run = prefect.run(workspace, "RUNNING", [tag_of(victim)])
    run = left_run(workspace, job, flow_run)
    kill(victim)
    sweeper = Sweeper(workspace, prefect.client)

    away = workspace.root / "slurm.conf"
    away.write_text((slurm.folder / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1\n# "))
    with monkeypatch.context() as silent:
        silent.setenv("SLURM_CONF", str(away))
        assert sweeper.sweep() == []
    assert prefect.state(flow_run) == ("RUNNING", "Running")
    assert workspace.registry.run(run).status == "detached"

    (line,) = sweeper.sweep()
    assert f"{job.name} goes on. Follow it with cupola attach {run}." in line
    assert prefect.state(flow_run) == ("CANCELLED", "Detached")
    assert workspace.registry.run(run).status == "detached"

    job.stop(0)
    assert sweeper.sweep() == [f"short pretrain: {job.name} has ended. Run {run} is set to failed."]
    assert workspace.registry.run(run).label == "failed (lost)"
    assert sweeper.sweep() == []


def test_a_submitted_run_whose_job_lives_is_scheduled_again_to_follow_it(
    prefect: Prefect, workspace: Workspace, process: Any, job: Any
) -> None:
    victim = process()
    flow_run = prefect.run(workspace, "RUNNING", [tag_of(victim)], submitted=True)
    left_run(workspace, job, flow_run)
    kill(victim)
    Sweeper(workspace, prefect.client).sweep()
    assert prefect.state(flow_run) == ("SCHEDULED", "AwaitingRetry")
