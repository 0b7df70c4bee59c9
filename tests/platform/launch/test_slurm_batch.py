"""What a Slurm job's batch step counts against the job."""

import signal
from pathlib import Path

import pytest

from cupola_platform.launch.slurm.batch import Batch, Terms


class RequeuedError(Exception):
    """Stands for the end of this process by Slurm."""


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    def requeue(self: Batch, why: str) -> None:
        raise RequeuedError(why)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Batch, "_requeue", requeue)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    Terms(jobs=(), per_node=1, python="python", module="x", interface="", restarts=1).write(tmp_path / "slurm.json")
    return Batch(tmp_path / "slurm.json")


def test_a_job_that_saves_in_each_of_its_time_limits_goes_on(batch: Batch) -> None:
    for step in range(5):
        batch.history.newest = batch._newest()
        (batch.folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
        with pytest.raises(RequeuedError, match="the time is up"):
            batch._requeue_in_time()
    assert batch.history.lost == 0


def test_a_job_whose_time_limit_is_too_short_for_a_checkpoint_ends(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequeuedError):
        batch._requeue_in_time()
    batch._requeue_in_time()
    assert batch.history.lost > batch.terms.restarts
    assert "no checkpoint was saved in it: raise time_limit" in capsys.readouterr().out
