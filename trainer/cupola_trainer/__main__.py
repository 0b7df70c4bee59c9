"""`torchrun -m cupola_trainer JOB.json [--allow-data-change]` runs one job; the option allows resuming with a different
data mixture than the checkpoint's. Exit status: 0 if complete, 143 if stopped by SIGTERM, 2 for a user error, which is
written to error.json, 75 if hung, 1 for any other failure.

`python -m cupola_trainer COMMAND ...` runs one of `commands`. The only other entry point is the process that runs a
model's code: `scoring.confined.main` must import nothing else from this package."""

import ctypes
import importlib
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
    from cupola_trainer.config import AnyJob

PR_SET_PDEATHSIG = 1
PREEMPTED = 128 + signal.SIGTERM


def main(path: Path, *, allow_data_change: bool = False) -> int:
    from cupola_platform.errors import ELSEWHERE, ConfigError, CupolaError, refusal

    _die_with_launcher()
    termination = Termination()
    _configure_logging()
    output = path.parent
    try:
        from cupola_trainer.config import JOB_VARIABLE

        several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
        if several and JOB_VARIABLE not in os.environ:  # a probe reports such nodes
            from cupola_trainer import runtime

            runtime.check_folder(output)  # first: on a node that sees another folder there may be no job to read
        from cupola_trainer.config import JOB, TrainJob, read_job

        job = read_job(path)
        _hold_inputs(JOB.dump_python(job, mode="json"))
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


def _hold_inputs(value: object) -> None:
    """Keep artifacts that a job reads from being removed from a cache while it runs, even without its command."""
    from cupola_platform.store.room import hold_if_cached

    if isinstance(value, str) and value.startswith("/"):
        hold_if_cached(Path(value))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _hold_inputs(each)


def run(job: "AnyJob", termination: "Termination") -> int:
    """Run a job of kind K with the module `cupola_trainer.jobs.K`."""
    from cupola_trainer import jobs, runtime

    module = importlib.import_module(f"{jobs.__name__}.{job.kind}")
    if job.kind == "train":
        complete = module.run(job, termination)
    else:
        termination.at_once()
        module.run(job)
        complete = True
    runtime.stop()
    return 0 if complete else PREEMPTED


class Termination:
    """Whether SIGTERM was received. Training checks between steps, so nothing is interrupted in the middle."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True

    def __call__(self) -> bool:
        return self.requested

    def at_once(self) -> None:
        """Let SIGTERM end the process immediately, for jobs that have nothing to save midway."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.requested:
            sys.exit(PREEMPTED)


def _die_with_launcher() -> None:
    """Have the kernel kill this rank when torchrun's agent dies, so that killing torchrun leaves no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _configure_logging() -> None:
    """Log our messages on rank 0, without Megatron's advice about missing packages."""
    warnings.simplefilter("ignore")
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("cupola_trainer").setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _report(output: Path, error: "CupolaError") -> int:
    """Write error.json and return the exit status. Ranks may fail at once: each write is atomic and the last one
    stays."""
    temporary = output / f".error.json.{os.getpid()}"
    with suppress(OSError):  # on a full disk, the log has the line
        output.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        temporary.replace(output / "error.json")
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].endswith(".json"):
        sys.exit(main(Path(sys.argv[1]), allow_data_change=sys.argv[2:] == ["--allow-data-change"]))
    from cupola_trainer import commands

    sys.exit(commands.main(sys.argv[1:]))
