"""Run by test_lengths.py under torchrun: trains the jobs on the command line in sequence, in the same processes."""

import sys
from pathlib import Path

from cupola_trainer import runtime
from cupola_trainer.config import TrainJob, read_job
from cupola_trainer.training import loop

if __name__ == "__main__":
    for path in sys.argv[1:]:
        job = read_job(Path(path))
        assert isinstance(job, TrainJob)
        assert loop.train(job, lambda: False)
    runtime.stop()
