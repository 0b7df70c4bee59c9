"""Everything a training process is told: one frozen job, read from one JSON file.

These are pydantic dataclasses with unknown keys forbidden, so that a recipe can embed them as they are, a
misspelt key is refused, and the JSON schema carries each field's docstring. Nothing here imports torch.

training.py   layout, optimizer, batches, checkpoints, faults
data.py       one class an objective
lengths.py    long context: positions and lengths
lora.py       low-rank adapters
making.py     jobs that make a checkpoint out of others
reinforcement.py  those that learn from their own answers: questions, sampling, rewards
jobs.py       the jobs
"""

from cupola_trainer.architecture import ModelConfig, MoEConfig
from cupola_trainer.config.data import (
    DistillationData,
    DpoData,
    NextTokenData,
    RewardData,
    SftData,
    TrainingData,
    check_replay,
)
from cupola_trainer.config.jobs import (
    JOB,
    AnyJob,
    EvaluateJob,
    FrontJob,
    Job,
    ReferenceJob,
    SampleJob,
    ScoreJob,
    TeachJob,
    TrainJob,
    UpcycleJob,
    read_job,
    write_job,
)
from cupola_trainer.config.lengths import CopyingConfig, LengthPhase, LengthSchedule, LongContextConfig, PositionChange
from cupola_trainer.config.lora import LoraConfig
from cupola_trainer.config.making import (
    MergeAdapterJob,
    MergeJob,
    MergeMethod,
    PruneJob,
    PruneTarget,
    check_merge,
)
from cupola_trainer.config.reinforcement import (
    CodeReward,
    GrpoData,
    ModelReward,
    OnlineDpoData,
    PpoData,
    PythonReward,
    Reward,
    RolloutConfig,
    TaskReward,
    check_anchor,
)
from cupola_trainer.config.training import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    OnlineMergingConfig,
    OptimizerConfig,
    ParallelConfig,
)

__all__ = [
    "JOB",
    "AnyJob",
    "BatchConfig",
    "CheckpointConfig",
    "CodeReward",
    "CopyingConfig",
    "DistillationData",
    "DpoData",
    "EvaluateJob",
    "FaultConfig",
    "FrontJob",
    "GrpoData",
    "Job",
    "LengthPhase",
    "LengthSchedule",
    "LongContextConfig",
    "LoraConfig",
    "MergeAdapterJob",
    "MergeJob",
    "MergeMethod",
    "MoEConfig",
    "ModelConfig",
    "ModelReward",
    "NextTokenData",
    "OnlineDpoData",
    "OnlineMergingConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PositionChange",
    "PpoData",
    "PruneJob",
    "PruneTarget",
    "PythonReward",
    "ReferenceJob",
    "Reward",
    "RewardData",
    "RolloutConfig",
    "SampleJob",
    "ScoreJob",
    "SftData",
    "TaskReward",
    "TeachJob",
    "TrainJob",
    "TrainingData",
    "UpcycleJob",
    "check_anchor",
    "check_merge",
    "check_replay",
    "read_job",
    "write_job",
]
