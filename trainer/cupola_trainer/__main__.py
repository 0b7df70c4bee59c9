"""`torchrun -m cupola_trainer JOB.json [--allow-data-change]`: obey one job; the option lets a job that resumes read another
mixture of data than the one that its checkpoint was trained on. Exit status 0 when it is complete, 143 when it was asked to end
before, 2 for a user's mistake, which error.json then names, 75 when it hung, 1 for any other failure."""

import ctypes
import json
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cupola_platform.errors import CupolaError

PR_SET_PDEATHSIG = 1
PREEMPTED = 128 + signal.SIGTERM


def main(path: Path, *, allow_data_change: bool = False) -> int:
    from cupola_platform.errors import ELSEWHERE, ConfigError, CupolaError, refusal

    _die_with_the_launcher()
    termination = Termination()
    _quiet()
    output = path.parent
    try:
        from cupola_trainer.config import TrainJob, read_job

        job = read_job(path)
        if allow_data_change and isinstance(job, TrainJob):
            job = job.but(allow_data_change=True)
        output = job.output
        if (output / "result.json").exists():
            return 0
        output.mkdir(parents=True, exist_ok=True)
        (output / "error.json").unlink(missing_ok=True)
        return run(job, termination)
    except CupolaError as error:
        return _report(output, error)
    except OSError as error:
        from cupola_trainer.checkpoint import SaveFailedError

        if (line := f"{output}: {error} {ELSEWHERE}" if isinstance(error, SaveFailedError) else refusal(error)) is None:
            raise
        return _report(output, ConfigError(line))


def run(job: object, termination: "Termination") -> int:
    """Do what the job's kind says."""
    from cupola_trainer import config, runtime

    if isinstance(job, config.TrainJob):
        from cupola_trainer.loop import train

        complete = train(job, termination)
        runtime.stop()
        return 0 if complete else PREEMPTED
    termination.at_once()
    if isinstance(job, config.UpcycleJob):
        from cupola_trainer import upcycling

        upcycling.run(job)
    elif isinstance(job, config.MergeJob):
        from cupola_trainer import merging

        merging.run(job)
    elif isinstance(job, config.MergeAdapterJob):
        from cupola_trainer import lora

        lora.merge_adapter(job)
    elif isinstance(job, config.PruneJob):
        from cupola_trainer import pruning

        pruning.run(job)
    elif isinstance(job, config.SampleJob):
        from cupola_trainer import rollout

        rollout.run(job)
    elif isinstance(job, config.ScoreJob):
        from cupola_trainer import rewarding

        rewarding.run(job)
    elif isinstance(job, config.ReferenceJob):
        from cupola_trainer import referencing

        referencing.run(job)
    elif isinstance(job, config.TeachJob):
        from cupola_trainer import teaching

        teaching.run(job)
    elif isinstance(job, config.FrontJob):
        from cupola_trainer.reinforcement import front

        front.run(job)
    elif isinstance(job, config.EvaluateJob):
        from cupola_trainer import evaluation

        evaluation.run(job)
    runtime.stop()
    return 0


class Termination:
    """Whether SIGTERM has come. Training looks between steps; nothing is interrupted in the middle."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked

    def at_once(self) -> None:
        """From now on SIGTERM ends the process where it stands: for jobs that have nothing to save half-way."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.asked:
            sys.exit(PREEMPTED)


def _die_with_the_launcher() -> None:
    """Have the kernel kill this rank when torchrun's agent is gone: torchrun killed outright leaves no orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _quiet() -> None:
    """Log ours on rank 0; Megatron's advice on what is not installed stays out of it."""
    warnings.simplefilter("ignore")
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("cupola_trainer").setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _report(output: Path, error: "CupolaError") -> int:
    """Ranks may meet the same error at once: each writes whole files, the last one stays. Returns the exit status."""
    temporary = output / f".error.json.{os.getpid()}"
    with suppress(OSError):  # a full disk: the log has the line
        output.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        temporary.replace(output / "error.json")
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), allow_data_change=sys.argv[2:] == ["--allow-data-change"]))
