"""The jobs that `python -m cupola_trainer` runs."""

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from cupola_platform.strict import Strict
from cupola_trainer.config.checkpoint_jobs import JobBase, MergeAdapterJob, MergeJob, PruneJob, UpcycleJob
from cupola_trainer.config.lengths import LongContextConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import PositionChange
from cupola_trainer.config.objectives import DpoData, NextTokenData, SftData, TrainingData
from cupola_trainer.config.probe import ProbeJob
from cupola_trainer.config.rl import GrpoData
from cupola_trainer.config.training import BatchConfig, PassSettings, TrainSettings

JOB_VARIABLE = "CUPOLA_JOB"
"""Environment variable with a job, for nodes that may not see its file."""


class RenderingJob(JobBase):
    """A job that renders conversations with a chat template."""

    template_date: date | None = None
    """The date that chat templates use as today; None for the one saved with the parent checkpoint's tokenizer, if
    any."""


class TrainJob(TrainSettings, RenderingJob):
    """Train a model with one objective, from random weights or from a checkpoint. With `lora`, only the adapters are
    saved."""

    kind: Literal["train"] = "train"
    model: ModelConfig | None = None
    """Shape of a new model; None for the parent checkpoint's."""
    parent: Path | None = None
    """Checkpoint folder to start from (weights only, not the optimizer); None for random weights."""
    positions: PositionChange | None = None
    """Changes to the parent checkpoint's positions; None for no change. Not with `model`."""
    tokenizer: Path | None = None
    """Tokenizer folder to save with a new model's checkpoints; None for the parent checkpoint's."""
    data: TrainingData
    objective: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """Name of another objective that trains on this kind of data; None for the data's own."""
    allow_data_change: bool = False
    """Resume even from a checkpoint that was trained on different data."""
    dry: bool = False
    """Only log each step's metrics: no evaluation, checkpoint or result."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with torch's profiler, into `output/profile`; None for no trace."""

    @model_validator(mode="after")
    def _length(self) -> "TrainJob":
        epochs = getattr(self.data, "epochs", None)
        if bool(self.steps) == bool(epochs):
            raise ValueError(f"steps={self.steps} and data.epochs={epochs}: set exactly one of them")
        return self

    @property
    def objective_name(self) -> str:
        """Name of the objective that the job trains with."""
        return self.objective or self.data.objective


class SamplingSettings(Strict):
    """How responses are sampled from a checkpoint."""

    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses per prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 for greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Sample from this many likeliest tokens; 0 for all."""
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Responses sampled together."""


class SampleJob(SamplingSettings, RenderingJob):
    """Sample responses from a checkpoint. Reads prompts.jsonl, writes `output/samples.jsonl`."""

    kind: Literal["sample"] = "sample"
    parent: Path
    prompts: Path
    """JSON lines: {"id": str, "messages": [{"role", "content"}, ...], "tools": [...] (callable functions)} or
    {"id": str, "text": str} (continued as is)."""


class ScoreJob(RenderingJob):
    """Score the last responses of conversations with a reward model. Writes `output/rewards.json`, a list in the same
    order."""

    kind: Literal["score"] = "score"
    parent: Path
    """The reward model's checkpoint folder."""
    conversations: Path
    """JSON lines: {"messages": [{"role", "content"}, ..., the response], "tools": [...] (callable functions)}."""
    batch_size: int = Field(default=16, ge=1)


class EvaluateSettings(Strict):
    """What to measure on each checkpoint."""

    max_heldout_tokens: int = Field(default=65_536, ge=1)
    window: int | None = Field(default=None, ge=8)
    """Maximum context of the held-out loss, in tokens; None for the model's longest sequence. If training used shorter
    sequences, give their length: untrained positions make a model look worse."""
    max_tasks: int = Field(default=200, ge=1)
    """Maximum held-out tasks per task name."""
    max_new_tokens: int = Field(default=32, ge=1)
    sample_prompts: tuple[str, ...] = ()
    """Texts that each checkpoint continues greedily, for people to read."""
    long_context: LongContextConfig | None = None
    """Long-context evaluation: loss by position and needle retrieval; None to skip it."""


class EvaluateJob(EvaluateSettings, RenderingJob):
    """Evaluate checkpoints on held-out text and tasks. Writes `output/results.json`."""

    kind: Literal["evaluate"] = "evaluate"
    checkpoints: dict[str, Path]
    """Stage name to checkpoint folder."""
    tokens: Path
    """Folder of a `tokens` artifact; bits per byte is measured on its held-out shards."""
    conversations: Path | None = None
    """Folder of a `conversations` artifact; accuracy is measured on its held-out tasks."""


class ReferenceJob(PassSettings, RenderingJob):
    """Precompute a frozen model's log-probabilities of preference pairs, for DPO. Writes `output/reference/`.

    Use the batch and precision of the training run: pairs that do not fit its sequences are dropped in both.
    """

    kind: Literal["reference"] = "reference"
    parent: Path
    """The frozen model's checkpoint folder."""
    data: DpoData


class TeachJob(RenderingJob):
    """Precompute a teacher's likeliest tokens for the samples of a training run. Writes `output/teacher/`."""

    kind: Literal["teach"] = "teach"
    parent: Path
    """The teacher's checkpoint folder."""
    data: NextTokenData | SftData = Field(discriminator="objective")
    """The training run's data. Seed, steps and batch must match it too, so that the samples are the same."""
    steps: int = Field(ge=1)
    batch: BatchConfig
    evaluate_batches: int = Field(default=4, ge=1)
    top_k: int = Field(default=32, ge=1)
    """Likeliest tokens to keep at each position; all others count as one outcome."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature."""


class ParetoFrontJob(PassSettings, RenderingJob):
    """Measure checkpoints' rewards on held-out prompts and their KL to a reference. Writes `output/pareto_front.json`:
    name to "reward", "kl" (nats per response) and "length"."""

    kind: Literal["pareto_front"] = "pareto_front"
    reference: Path
    """Checkpoint folder of the reference, with the same architecture as the others."""
    checkpoints: dict[str, Path]
    """Name to checkpoint folder."""
    data: GrpoData
    """Prompts, sampling and rewards."""


AnyJob = (
    TrainJob
    | UpcycleJob
    | SampleJob
    | ScoreJob
    | EvaluateJob
    | MergeJob
    | MergeAdapterJob
    | PruneJob
    | ReferenceJob
    | TeachJob
    | ParetoFrontJob
    | ProbeJob
)
Job = Annotated[AnyJob, Field(discriminator="kind")]
JOB: TypeAdapter[AnyJob] = TypeAdapter(Job)


def read_job(path: Path) -> AnyJob:
    """Read a job from a JSON file, or from `CUPOLA_JOB` on a node that does not see the file. Raises pydantic's
    ValidationError (our launcher writes only valid ones)."""
    text = os.environ.get(JOB_VARIABLE)
    return JOB.validate_json(path.read_bytes() if text is None or path.exists() else text)


def write_job(job: AnyJob, path: Path) -> None:
    """Write a job as JSON for `read_job`."""
    path.write_bytes(JOB.dump_json(job, indent=2))
