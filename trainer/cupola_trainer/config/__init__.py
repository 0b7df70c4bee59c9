"""Everything a training process is told: one frozen job, read from one JSON file.

These are pydantic dataclasses with unknown keys forbidden, so that a recipe can embed them as they are, a
misspelt key is refused, and the JSON schema carries each field's docstring. Nothing here imports torch.

training.py   layout, optimizer, batches, checkpoints, faults
data.py       one class an objective
lengths.py    long context: positions and lengths
jobs.py       the jobs
"""

from cupola_trainer.architecture import STRICT, ModelConfig, MoEConfig
from cupola_trainer.config.data import DpoData, NextTokenData, SftData, TrainingData
from cupola_trainer.config.jobs import JOB, EvaluateJob, Job, SampleJob, TrainJob, UpcycleJob, read_job, write_job
from cupola_trainer.config.lengths import LengthPhase, LengthSchedule, LongContextConfig, PositionChange
from cupola_trainer.config.training import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    OptimizerConfig,
    ParallelConfig,
)

__all__ = [
    "JOB",
    "STRICT",
    "BatchConfig",
    "CheckpointConfig",
    "DpoData",
    "EvaluateJob",
    "FaultConfig",
    "Job",
    "LengthPhase",
    "LengthSchedule",
    "LongContextConfig",
    "MoEConfig",
    "ModelConfig",
    "NextTokenData",
    "OptimizerConfig",
    "ParallelConfig",
    "PositionChange",
    "SampleJob",
    "SftData",
    "TrainJob",
    "TrainingData",
    "UpcycleJob",
    "read_job",
    "write_job",
]
