"""Everything a training process is told: one frozen job, read from one JSON file.

These are pydantic dataclasses with unknown keys forbidden, so that a recipe can embed them as they are, a
misspelt key is refused, and the JSON schema carries each field's docstring. Nothing here imports torch.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_trainer.architecture import STRICT, ModelConfig, MoEConfig

__all__ = [
    "JOB",
    "STRICT",
    "BatchConfig",
    "CheckpointConfig",
    "DpoData",
    "EvaluateJob",
    "Job",
    "MoEConfig",
    "ModelConfig",
    "NextTokenData",
    "OptimizerConfig",
    "ParallelConfig",
    "SampleJob",
    "SftData",
    "TrainJob",
    "UpcycleJob",
    "read_job",
    "write_job",
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelConfig:
    """How a model is laid out over processes. The world size is tp x pp x cp x dp."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size."""

    pp: int = Field(default=1, ge=1)
    """Pipeline-parallel size."""

    vp: int | None = Field(default=None, ge=2)
    """Model chunks per pipeline rank (interleaved schedule); none for 1F1B."""

    cp: int = Field(default=1, ge=1)
    """Context-parallel size."""

    ep: int = Field(default=1, ge=1)
    """Expert-parallel size; divides tp x cp x dp."""

    etp: int | None = Field(default=None, ge=1)
    """Tensor-parallel size inside experts; none for 1 when ep > 1, else tp."""

    dp: int = Field(default=1, ge=1)
    """Data-parallel size."""

    sp: bool = False
    """Sequence parallelism: shard activations of norms over the tensor-parallel group. MoE with tp > 1 needs it."""

    distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel group."""

    overlap: bool = False
    """Overlap gradient reduction and parameter gathering with computation."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again in the backward pass: none; attention's scores; every layer's, from its input."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, as Qwen's pretraining."""

    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final learning rate over the peak."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""

    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second moment decay."""

    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, on matrices only."""

    clip_grad: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 for no clipping."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchConfig:
    """How many sequences one optimizer step sees, and how long they are."""

    sequence_length: int = Field(ge=8)
    """Tokens per sequence."""

    micro_batch_size: int = Field(default=4, ge=1)
    """Sequences per data-parallel rank in one forward pass (pairs, for DPO)."""

    global_batch_size: int = Field(default=16, ge=1)
    """Sequences per optimizer step, over all ranks (pairs, for DPO)."""

    def num_microbatches(self, data_parallel: int) -> int:
        """Forward passes per optimizer step on `data_parallel` ranks.

        Raises:
            ConfigError: the global batch does not divide.
        """
        per_pass = self.micro_batch_size * data_parallel
        passes, rest = divmod(self.global_batch_size, per_pass)
        if rest:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size x data_parallel = "
                f"{self.micro_batch_size} x {data_parallel} = {per_pass}. Try global_batch_size={(passes + 1) * per_pass}."
            )
        return passes


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """When a training job saves, and what it keeps."""

    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves at the end and on SIGTERM only."""

    keep: int = Field(default=2, ge=1)
    """Newest checkpoints to keep."""

    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoint of every step that this divides, however old; 0 for none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FaultConfig:
    """When a training job takes its weights back to an earlier checkpoint, and when it counts as hung."""

    bad_gradients: int = Field(default=3, ge=1)
    """Steps in a row without a finite gradient that lead to a rollback. Each one alone is skipped and logged."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A loss above this many times the running median leads to a rollback; none looks at no loss. 2 suits pretraining;
    losses near zero (DPO, few data learnt by heart) jump by large factors on their own."""

    spike_window: int = Field(default=32, ge=2)
    """Steps that the median is taken over; before there are as many, no loss is judged."""

    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks in a job's life; the next fault ends it."""

    hang_seconds: float = Field(default=300.0, ge=0)
    """Seconds in which no micro-batch, save or other part of a step was finished, after which a job hangs; 0 for never."""

    max_restarts: int = Field(default=2, ge=0)
    """Times that a job that hung is started again."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NextTokenData:
    """Pretraining on packed tokens."""

    objective: Literal["next_token"] = "next_token"

    tokens: Path
    """A `tokens` artifact's folder."""

    weights: dict[str, float] | None = None
    """Sampling weight per source; none for weights in proportion to tokens."""

    reset_at_documents: bool = False
    """Each document sees only itself: attention ends, and positions begin, at its borders. Off: sequences run across."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SftData:
    """Supervised fine-tuning: ChatML, loss on assistant tokens only."""

    objective: Literal["sft"] = "sft"

    conversations: Path
    """A `conversations` artifact's folder."""

    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoData:
    """Direct preference optimization on pairs, against the frozen initial model."""

    objective: Literal["dpo"] = "dpo"

    preferences: Path
    """A `preferences` artifact's folder."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""

    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's own loss, or IPO's squared one, which does not run off on pairs that are already told apart."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' mean token loss beside it: keeps them likely while the margin grows."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainJob:
    """Train a model with one objective, from random weights or from a checkpoint."""

    kind: Literal["train"] = "train"
    output: Path
    """Folder of this job: metrics.jsonl, checkpoints/, result.json, error.json. Running again in it resumes."""
    seed: int = 0
    model: ModelConfig | None = None
    """Shape of a new model; none to take the initial checkpoint's."""
    initial: Path | None = None
    """Checkpoint folder whose weights (not optimizer) to start from; none for random weights."""
    tokenizer: Path | None = None
    """Tokenizer folder to keep with a new model's checkpoints; none to take the initial checkpoint's."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    batch: BatchConfig
    data: Annotated[NextTokenData | SftData | DpoData, Field(discriminator="objective")]
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log_every: int = Field(default=1, ge=1)
    """Steps between lines in metrics.jsonl."""
    faults: FaultConfig = Field(default_factory=FaultConfig)
    allow_data_change: bool = False
    """Resume from a checkpoint that was trained on other data than this job's."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out losses; 0 for before the first step and after the last only."""
    evaluate_batches: int = Field(default=4, ge=1)
    """Global batches in one held-out loss."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; bf16 keeps fp32 master weights, gradients and moments. Auto: bf16 on GPUs, fp32 on CPUs."""
    dry: bool = False
    """Only write each step's numbers: no held-out loss, no checkpoint, no result."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with torch's profiler, into `output/profile`; none for no trace."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UpcycleJob:
    """Turn a dense checkpoint into a mixture of experts, the Qwen2 way."""

    kind: Literal["upcycle"] = "upcycle"
    output: Path
    seed: int = 0
    initial: Path
    """Dense checkpoint folder."""
    moe: MoEConfig
    reinit_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of each expert's parameters drawn anew."""
    reinit: Literal["element", "unit", "none"] = "element"
    """What is drawn anew: single weights, whole intermediate units, or nothing."""
    shuffle: bool = True
    """Shuffle the intermediate units of each copy before experts are cut from them."""
    router: Literal["random", "copies", "zeros"] = "random"
    """How the router starts: N(0, init_std), the same but one row for all experts of a copy, or zeros."""
    match_dense: bool = False
    """Scale the experts' outputs so that without re-initialisation the model says what the dense one said. Needs
    norm_topk_prob, router=copies, and whole copies in the experts, in top_k and in the shared expert."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampleJob:
    """Sample answers from a checkpoint. Reads prompts.jsonl, writes `output/samples.jsonl`."""

    kind: Literal["sample"] = "sample"
    output: Path
    seed: int = 0
    initial: Path
    prompts: Path
    """JSON lines: {"id": str, "messages": [{"role", "content"}, ...]} or {"id": str, "text": str} (continued as is)."""
    num_samples: int = Field(default=1, ge=1)
    """Answers per prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """0 for greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=64, ge=1)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateJob:
    """Measure checkpoints on held-out text and tasks. Writes `output/results.json`."""

    kind: Literal["evaluate"] = "evaluate"
    output: Path
    seed: int = 0
    checkpoints: dict[str, Path]
    """Name (a stage's) to checkpoint folder."""
    tokens: Path
    """A `tokens` artifact's folder: its held-out shards give bits per byte."""
    conversations: Path | None = None
    """A `conversations` artifact's folder: its held-out tasks give accuracy."""
    max_heldout_tokens: int = Field(default=65_536, ge=1)
    window: int | None = Field(default=None, ge=8)
    """Most tokens of context in a held-out loss; none for the model's longest sequence. Give the length that it was trained
    at where that is shorter: positions that were never trained make a model look worse."""
    max_tasks: int = Field(default=200, ge=1)
    """Held-out tasks per task name."""
    max_new_tokens: int = Field(default=32, ge=1)
    sample_prompts: tuple[str, ...] = ()
    """Plain texts that each checkpoint continues, greedily, to be read by people."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)


Job = Annotated[TrainJob | UpcycleJob | SampleJob | EvaluateJob, Field(discriminator="kind")]
JOB: TypeAdapter[TrainJob | UpcycleJob | SampleJob | EvaluateJob] = TypeAdapter(Job)


def read_job(path: Path) -> TrainJob | UpcycleJob | SampleJob | EvaluateJob:
    """The job in a JSON file. Raises pydantic's ValidationError (our launcher writes only valid ones)."""
    return JOB.validate_json(path.read_bytes())


def write_job(job: TrainJob | UpcycleJob | SampleJob | EvaluateJob, path: Path) -> None:
    """Write a job as JSON that `read_job` gives back."""
    path.write_bytes(JOB.dump_json(job, indent=2))
