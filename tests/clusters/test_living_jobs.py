"""Whether a run's job lives is asked of its cluster, on a real Slurm."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ServiceError
from cupola_platform.launch.handle import Handle
from cupola_platform.launch.living import living_job
from cupola_platform.launch.slurm.launcher import SlurmLauncher
from cupola_platform.settings import Settings

CLUSTER = SlurmCluster(launcher="slurm", nodes=4, ranks_per_node=1, interface="lo")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", clusters={"test": CLUSTER})


@pytest.mark.slow
def test_a_job_that_waits_or_runs_is_found_in_any_folder_of_the_run_until_it_ends(
    on_slurm: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waiting_rank.py").write_text("import time\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    work = tmp_path / "work"
    assert living_job(settings, work) is None, "a folder that does not exist"
    folder = work / "round1" / "run2"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({}))
    started = SlurmLauncher("test", CLUSTER, module="waiting_rank").start(
        folder / "job.json", processes=1, log=tmp_path / "log"
    )
    living = living_job(settings, work)
    assert living is not None
    assert living.name == started.name
    living.stop(0)
    assert living_job(settings, work) is None


@pytest.mark.slow
def test_an_engine_that_does_not_answer_says_nothing_about_the_job(
    slurm: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "slurm.conf"
    away.write_text((slurm.folder / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1\n# "))
    monkeypatch.setenv("SLURM_CONF", str(away))
    (tmp_path / "work" / "job").mkdir(parents=True)
    Handle(cluster="test", id="17").write(tmp_path / "work" / "job")
    asked = time.monotonic()
    with pytest.raises(ServiceError, match=r"^Cluster test does not say whether job 17 lives: no answer within 3 s$"):
        living_job(settings, tmp_path / "work", patience=3)
    assert time.monotonic() - asked < 6
    with pytest.raises(ServiceError, match=r"job 17 lives: No cluster is called 'test'"):
        living_job(Settings(home=tmp_path / "home"), tmp_path / "work")
