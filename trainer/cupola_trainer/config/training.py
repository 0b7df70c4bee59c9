"""How a training job runs: its optimizer, batches, checkpoints and faults."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT, Strict
from cupola_trainer.config.lora import LoraConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineMergingConfig:
    """The online merging optimizer: what Adam does is merged with what the parent checkpoint has learned since a
    base."""

    method: Literal["ondare", "onties"] = "ondare"
    """How both are thinned out: at random, or by magnitude and consensus of signs."""

    alpha: float = Field(gt=0, lt=1)
    """Share of what the parent checkpoint has learned in each merge. It is added at every one: of the order of the
    learning rate."""

    density: float = Field(gt=0, le=1)
    """Share of both that is kept."""

    online_step: int = Field(default=1, ge=1)
    """Steps from one merge to the next, which are merged together;
    costs one more copy of the weights where it is above 1."""

    base: Path
    """Checkpoint folder that the parent one was fine-tuned from. In a recipe: a stage's name, or artifact:ID."""


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

    merging: OnlineMergingConfig | None = None
    """Keep to what the parent checkpoint can do, by online merging; none for plain AdamW."""


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
                f"{self.micro_batch_size} x {data_parallel} = {per_pass}. Try "
                f"global_batch_size={(passes + 1) * per_pass}."
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

    upload: bool = False
    """Copy each checkpoint to the store while training goes on, and keep there what is kept here: a stage that finds
    its work folder empty, on another machine for instance, goes on from there."""

    upload_wait: float = Field(default=10.0, ge=0)
    """Seconds that a run which ends early waits for the upload of its last checkpoint. What is not there by then goes
    with the next start."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FaultConfig:
    """When a training job takes its weights back to an earlier checkpoint, and when it counts as hung."""

    bad_gradients: int = Field(default=3, ge=1)
    """Steps in a row without a finite gradient that lead to a rollback. Each one alone is skipped and logged."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A loss above this many times the running median leads to a rollback; none looks at no loss. 2 suits pretraining;
    losses near zero (DPO, little data learned by heart) jump by large factors on their own."""

    spike_window: int = Field(default=32, ge=2)
    """Steps that the median is taken over; before there are as many, no loss is judged."""

    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks in a job's life; the next fault ends it."""

    hang_seconds: float = Field(default=300.0, ge=0)
    """Seconds in which no micro-batch, save or other part of a step was finished, after which a job hangs;
    0 for never."""

    max_restarts: int = Field(default=2, ge=0)
    """Times that a job that hung is started again in one run of its stage; under Prefect, one that crashed too."""


class PassSettings(Strict):
    """How a model is run over rows."""

    batch: BatchConfig
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; bf16 keeps fp32 master weights, gradients and moments. Auto: bf16 on GPUs,
    fp32 on CPUs."""


class TrainSettings(PassSettings):
    """How a model is trained, whatever it is trained for."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0, in supervised fine-tuning, for as many as `epochs` take."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    """Train adapters on the frozen parent and fold them in at the end; none to train every weight."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    faults: FaultConfig = Field(default_factory=FaultConfig)
    log_every: int = Field(default=1, ge=1)
    """Steps between points on the curves, lines in metrics.jsonl."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out losses; 0 for before the first step and after the last only."""
    evaluate_batches: int = Field(default=4, ge=1)
    """Global batches in one held-out loss."""
