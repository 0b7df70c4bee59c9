"""The configuration of a training process: one frozen job, read from one JSON file.

Unknown keys are refused, which catches typos, and the JSON schema carries each field's docstring. Fields that a user
sets live in a `...Settings` class that both the job and the recipe's stage inherit, so each is written once. Nothing
here imports torch.

layout.py           the parallel layout
training.py         optimizer, batches, checkpoints, faults
objectives.py       one class per objective
lengths.py          long context: sequence lengths by step
lora.py             low-rank adapters
checkpoint_jobs.py  jobs that turn checkpoints into a new one
scorers.py          how responses are scored
rl.py               objectives that train on the model's own responses: prompts, sampling, rewards
probe.py            the job that examines a cluster's nodes, and its report
layout_rules.py     which layouts are refused
memory.py           a forecast of the memory that training takes
precision.py        in which precision a model trains
precision_rules.py  which precisions are refused
model/              the model: shape, positions, presets
jobs.py             the jobs
"""

from cupola_trainer.config.checkpoint_jobs import (
    MergeAdapterJob,
    MergeJob,
    MergeSettings,
    PruneJob,
    PruneSettings,
    PruneTarget,
    UpcycleJob,
    UpcycleSettings,
)
from cupola_trainer.config.jobs import (
    JOB,
    JOB_VARIABLE,
    AnyJob,
    EvaluateJob,
    EvaluateSettings,
    Job,
    ParetoFrontJob,
    ReferenceJob,
    SampleJob,
    SamplingSettings,
    ScoreJob,
    TeachJob,
    TrainJob,
    read_job,
    write_job,
)
from cupola_trainer.config.layout import LayoutConfig, LayoutSettings
from cupola_trainer.config.lengths import (
    CopyingConfig,
    LengthPhase,
    LengthSchedule,
    LengthSettings,
    LongContextConfig,
)
from cupola_trainer.config.lora import LoraConfig
from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig
from cupola_trainer.config.model.positions import PositionChange
from cupola_trainer.config.objectives import (
    DistillationData,
    DistillationSettings,
    DpoData,
    DpoSettings,
    NextTokenData,
    NextTokenSettings,
    RewardData,
    RewardSettings,
    SftData,
    SftSettings,
    TrainingData,
    check_replay,
)
from cupola_trainer.config.precision import Fp8Config, Precision
from cupola_trainer.config.probe import NodeReport, ProbeJob, ProbeReport
from cupola_trainer.config.rl import (
    GrpoData,
    GrpoSettings,
    OnlineDpoData,
    OnlineDpoSettings,
    PpoData,
    PpoSettings,
    ReinforcementSettings,
    RolloutConfig,
)
from cupola_trainer.config.scorers import (
    ROW_FIELDS,
    ExecutionReward,
    HttpReward,
    PatternReward,
    PreferenceScorer,
    PythonReward,
    Reward,
    RewardModelReward,
    Scorer,
    SynthesisScorer,
    TaskReward,
)
from cupola_trainer.config.training import (
    OPTIMIZER,
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    OnlineMergingConfig,
    OptimizerConfig,
    TrainSettings,
)

FINGERPRINTED = "functions"  # a fingerprint already holds the settings' values; only the methods' code adds to it

__all__ = [
    "JOB",
    "JOB_VARIABLE",
    "OPTIMIZER",
    "ROW_FIELDS",
    "AnyJob",
    "BatchConfig",
    "CheckpointConfig",
    "CopyingConfig",
    "DistillationData",
    "DistillationSettings",
    "DpoData",
    "DpoSettings",
    "EvaluateJob",
    "EvaluateSettings",
    "ExecutionReward",
    "FaultConfig",
    "Fp8Config",
    "GrpoData",
    "GrpoSettings",
    "HttpReward",
    "Job",
    "LayoutConfig",
    "LayoutSettings",
    "LengthPhase",
    "LengthSchedule",
    "LengthSettings",
    "LongContextConfig",
    "LoraConfig",
    "MergeAdapterJob",
    "MergeJob",
    "MergeSettings",
    "MoEConfig",
    "ModelConfig",
    "NextTokenData",
    "NextTokenSettings",
    "NodeReport",
    "OnlineDpoData",
    "OnlineDpoSettings",
    "OnlineMergingConfig",
    "OptimizerConfig",
    "ParetoFrontJob",
    "PatternReward",
    "PositionChange",
    "PpoData",
    "PpoSettings",
    "Precision",
    "PreferenceScorer",
    "ProbeJob",
    "ProbeReport",
    "PruneJob",
    "PruneSettings",
    "PruneTarget",
    "PythonReward",
    "ReferenceJob",
    "ReinforcementSettings",
    "Reward",
    "RewardData",
    "RewardModelReward",
    "RewardSettings",
    "RolloutConfig",
    "SampleJob",
    "SamplingSettings",
    "ScoreJob",
    "Scorer",
    "SftData",
    "SftSettings",
    "SynthesisScorer",
    "TaskReward",
    "TeachJob",
    "TrainJob",
    "TrainSettings",
    "TrainingData",
    "UpcycleJob",
    "UpcycleSettings",
    "check_replay",
    "read_job",
    "write_job",
]
