"""The jobs: what one start of `python -m cupola_trainer` is told to do."""

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
from cupola_trainer.config.rl import GrpoData
from cupola_trainer.config.training import BatchConfig, PassSettings, TrainSettings


class RenderingJob(JobBase):
    """What every job is told that puts conversations through a chat template."""

    template_date: date | None = None
    """What chat templates take for today; none for the date that the parent checkpoint's tokenizer keeps, if any."""


class TrainJob(TrainSettings, RenderingJob):
    """Train a model with one objective, from random weights or from a checkpoint.
    A job with `lora` saves adapters alone."""

    kind: Literal["train"] = "train"
    model: ModelConfig | None = None
    """Shape of a new model; none to take the parent checkpoint's."""
    parent: Path | None = None
    """Checkpoint folder whose weights (not optimizer) to start from; none for random weights."""
    positions: PositionChange | None = None
    """What the parent checkpoint's positions become; none to leave them. Not with `model`."""
    tokenizer: Path | None = None
    """Tokenizer folder to keep with a new model's checkpoints; none to take the parent checkpoint's."""
    data: TrainingData
    objective: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the objective where several learn from data of this kind; none for the data's own."""
    allow_data_change: bool = False
    """Resume from a checkpoint that was trained on other data than this job's."""
    dry: bool = False
    """Only write each step's numbers: no held-out loss, no checkpoint, no result."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with torch's profiler, into `output/profile`; none for no trace."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainJob":
        epochs = getattr(self.data, "epochs", None)
        if bool(self.steps) == bool(epochs):
            raise ValueError(f"steps={self.steps} and data.epochs={epochs}: give one of them")
        return self

    @property
    def objective_name(self) -> str:
        """Of the objective that the job trains with."""
        return self.objective or self.data.objective


class SamplingSettings(Strict):
    """How responses are drawn from a checkpoint."""

    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses per prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """0 for greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Likeliest tokens to draw from; 0 for all."""
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Responses sampled together."""


class SampleJob(SamplingSettings, RenderingJob):
    """Sample responses from a checkpoint. Reads prompts.jsonl, writes `output/samples.jsonl`."""

    kind: Literal["sample"] = "sample"
    parent: Path
    prompts: Path
    """JSON lines: {"id": str, "messages": [{"role", "content"}, ...], "tools": [...] (what may be called)} or
    {"id": str, "text": str} (continued as is)."""


class ScoreJob(RenderingJob):
    """What a reward model gives the last responses of conversations. Writes `output/rewards.json`,
    a list in their order."""

    kind: Literal["score"] = "score"
    parent: Path
    """The reward model's checkpoint folder."""
    conversations: Path
    """JSON lines: {"messages": [{"role", "content"}, ..., the response], "tools": [...] (what may be called)}."""
    batch_size: int = Field(default=16, ge=1)


class EvaluateSettings(Strict):
    """What is measured of each checkpoint."""

    max_heldout_tokens: int = Field(default=65_536, ge=1)
    window: int | None = Field(default=None, ge=8)
    """Most tokens of context in a held-out loss; none for the model's longest sequence. Give the length that it was
    trained at where that is shorter: positions that were never trained make a model look worse."""
    max_tasks: int = Field(default=200, ge=1)
    """Held-out tasks per task name."""
    max_new_tokens: int = Field(default=32, ge=1)
    sample_prompts: tuple[str, ...] = ()
    """Plain texts that each checkpoint continues, greedily, to be read by people."""
    long_context: LongContextConfig | None = None
    """How far each checkpoint reads: loss by position and needles; none to leave it unmeasured."""


class EvaluateJob(EvaluateSettings, RenderingJob):
    """Measure checkpoints on held-out text and tasks. Writes `output/results.json`."""

    kind: Literal["evaluate"] = "evaluate"
    checkpoints: dict[str, Path]
    """Name (a stage's) to checkpoint folder."""
    tokens: Path
    """A `tokens` artifact's folder: its held-out shards give bits per byte."""
    conversations: Path | None = None
    """A `conversations` artifact's folder: its held-out tasks give accuracy."""


class ReferenceJob(PassSettings, RenderingJob):
    """What a frozen model says of every response of preference pairs, for DPO. Writes `output/reference/`.

    Batch and precision are those of the training to come: pairs that do not fit its sequences are left out,
    there and here.
    """

    kind: Literal["reference"] = "reference"
    parent: Path
    """The checkpoint folder of the frozen model."""
    data: DpoData


class TeachJob(RenderingJob):
    """What a teacher says of the samples of a training to come, its likeliest tokens. Writes `output/teacher/`."""

    kind: Literal["teach"] = "teach"
    parent: Path
    """The teacher's checkpoint folder."""
    data: NextTokenData | SftData = Field(discriminator="objective")
    """The text of the training to come, and below its seed, steps and batch: the samples are the same."""
    steps: int = Field(ge=1)
    batch: BatchConfig
    evaluate_batches: int = Field(default=4, ge=1)
    top_k: int = Field(default=32, ge=1)
    """Likeliest tokens to keep at each place; all others together are one outcome."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the distributions."""


class ParetoFrontJob(PassSettings, RenderingJob):
    """What checkpoints' responses to held-out prompts are worth, and how far they are from a reference. Writes
    `output/pareto_front.json`: name to "reward", "kl" (nats per response) and "length"."""

    kind: Literal["pareto_front"] = "pareto_front"
    reference: Path
    """Checkpoint folder, of the architecture of all."""
    checkpoints: dict[str, Path]
    """Name to checkpoint folder."""
    data: GrpoData
    """Prompts, sampling, rewards."""


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
)
Job = Annotated[AnyJob, Field(discriminator="kind")]
JOB: TypeAdapter[AnyJob] = TypeAdapter(Job)


def read_job(path: Path) -> AnyJob:
    """The job in a JSON file. Raises pydantic's ValidationError (our launcher writes only valid ones)."""
    return JOB.validate_json(path.read_bytes())


def write_job(job: AnyJob, path: Path) -> None:
    """Write a job as JSON that `read_job` gives back."""
    path.write_bytes(JOB.dump_json(job, indent=2))
