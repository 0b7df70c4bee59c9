"""Settings of a training run: optimizer, batches, checkpoints, faults."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT, Strict
from cupola_trainer.config.lora import LoraConfig
from cupola_trainer.config.precision import Fp8Config, Precision


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineMergingConfig:
    """The online merging optimizer: merges Adam's updates with the parent checkpoint's changes since a base."""

    method: Literal["ondare", "onties"] = "ondare"
    """How both are sparsified: at random (ondare), or by magnitude and sign consensus (onties)."""

    alpha: float = Field(gt=0, lt=1)
    """Weight of the parent checkpoint's changes in each merge. They are added every time, so use the order of the
    learning rate."""

    density: float = Field(gt=0, le=1)
    """Share of each that is kept."""

    online_step: int = Field(default=1, ge=1)
    """Steps between merges; their updates are merged together. Above 1 it costs an extra copy of the weights."""

    base: Path
    """Checkpoint folder that the parent was fine-tuned from. In a recipe: a stage's name, or artifact:ID."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """AdamW with linear warm-up and a schedule; by default cosine decay, as in Qwen's pretraining."""

    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Lowest learning rate after the warm-up, as a fraction of the peak."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""

    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """After the warm-up: decay to `min_lr_ratio` at the last step along half a cosine or a line; no decay; peak x
    sqrt(warmup_steps / step); or, for `wsd`, the peak until the last `decay_steps` (warm-up, stable, decay)."""

    decay_steps: int = Field(default=0, ge=0)
    """Steps of the decay of `wsd`, at the end of the run."""

    decay: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """Shape of that decay. `minus_sqrt`: 1 - sqrt(share of it that is over) (Haegele et al. 2024)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""

    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second moment decay."""

    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, applied to matrices only."""

    clip_grad: float = Field(default=1.0, ge=0)
    """Maximum global gradient norm; 0 disables clipping."""

    states: Literal["fp32", "bf16"] = "fp32"
    """Precision in which both moments are stored. bf16 halves them, in memory and in the optimizer's artifact: they are
    computed in fp32 and rounded to the nearest. Weights are updated in fp32 either way."""

    merging: OnlineMergingConfig | None = None
    """Online merging, which preserves the parent checkpoint's abilities; None for plain AdamW."""

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> "OptimizerConfig":
        if (self.schedule == "wsd") != bool(self.decay_steps):
            raise ValueError(
                f"schedule={self.schedule} with decay_steps={self.decay_steps}: wsd needs decay_steps, and only wsd "
                "has them"
            )
        return self

    @model_validator(mode="after")
    def _moments_can_move(self) -> "OptimizerConfig":
        if self.states == "bf16" and self.beta2 > MOST_BETA2:
            raise ValueError(
                f"beta2={self.beta2} with states=bf16: a step changes the second moment by less than bf16 resolves, so "
                f"it would never shrink. Use beta2={MOST_BETA2} or less, or states: fp32"
            )
        return self

    def too_long(self, steps: int) -> str:
        """Why the schedule does not fit into a run of this many steps; empty if it does."""
        if self.schedule != "wsd" or min(self.warmup_steps, steps - 1) + self.decay_steps <= steps:
            return ""
        return (
            f"optimizer: warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} are more than the {steps} "
            "steps of the run. Use fewer"
        )


MOST_BETA2 = 0.99
"""With moments in bf16: a step must change them by more than half of the last of their 8 bits, at most 2^-8 of them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchConfig:
    """Sequences per optimizer step, and their length."""

    sequence_length: int = Field(ge=8)
    """Tokens per sequence."""

    micro_batch_size: int = Field(default=4, ge=1)
    """Sequences per data-parallel rank in one forward pass (pairs, for DPO)."""

    global_batch_size: int = Field(default=16, ge=1)
    """Sequences per optimizer step, over all ranks (pairs, for DPO)."""

    def num_microbatches(self, data_parallel: int) -> int:
        """Forward passes per optimizer step on `data_parallel` ranks.

        Raises:
            ConfigError: global_batch_size is not a multiple of the sequences per pass.
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


OPTIMIZER = "optimizer"
"""Folder of a checkpoint that holds what only further training needs: moments, fp32 weights of a bf16 model, schedule.
Published, it is an artifact of this kind."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """When a training job saves, and which checkpoints it keeps."""

    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves only at the end and on SIGTERM."""

    keep: int = Field(default=2, ge=1)
    """Number of latest checkpoints to keep."""

    keep_every: int = Field(default=0, ge=0)
    """Also keep checkpoints whose step is a multiple of this, however old; 0 for none."""

    host_memory: float = Field(default=16.0, ge=1 / 16)
    """GiB of host memory per process that a save copies weights and moments to, so that training can continue while
    they are written. It is kept between saves. If a process writes more than this, the next update waits until all but
    this much is on disk. 16 GiB hold what a rank writes of a mixture of 57B parameters on 64 ranks or of 1T on 2,048,
    and are 128 GiB on a node of eight."""

    upload: bool = False
    """Upload each checkpoint to the store in the background, with the same retention. A stage whose work folder is
    empty, on another machine for instance, resumes from there."""

    upload_wait: float = Field(default=10.0, ge=0)
    """Seconds that an interrupted run waits for its last upload. An unfinished upload is completed at the next
    start."""

    publish_optimizer: bool = True
    """Publish the optimizer state beside the last checkpoint, as an artifact of kind `optimizer`, twice (fp32) or six
    times (bf16) the size of the weights. Only continuing this training needs it; `cupola gc` removes it sooner than the
    weights."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FaultConfig:
    """When a training job rolls back to an earlier checkpoint, and when it counts as hung."""

    bad_gradients: int = Field(default=3, ge=1)
    """Consecutive steps with non-finite gradients that trigger a rollback. Each such step is skipped and logged."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A loss above this multiple of the running median triggers a rollback; None disables spike detection. 2 suits
    pretraining; losses near zero (DPO, memorized data) jump by large factors anyway."""

    spike_window: int = Field(default=32, ge=2)
    """Steps in the running median; detection starts once the window is full."""

    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks per job; the next fault ends it."""

    hang_seconds: float = Field(default=300.0, ge=0)
    """Seconds without a finished micro-batch, save or other part of a step before a job counts as hung; 0 disables
    the check."""

    max_restarts: int = Field(default=2, ge=0)
    """Restarts of a hung job per run of its stage; under Prefect, of a crashed one too."""


class PassSettings(Strict):
    """Batch and precision of a pass over data."""

    batch: BatchConfig
    precision: Precision = "auto"
    """Precision of weights and activations; bf16 keeps master weights, gradients and moments in fp32. `auto`: bf16 on
    GPUs, fp32 on CPUs. `fp8`: bf16 with FP8 products in training; passes without gradient are bf16."""


class TrainSettings(PassSettings):
    """Training settings that every objective shares."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0 in supervised fine-tuning to train for `epochs`."""
    fp8: Fp8Config = Field(default_factory=Fp8Config)
    """How `precision: fp8` computes."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    """Train adapters on the frozen parent and fold them in at the end; None trains every weight."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    faults: FaultConfig = Field(default_factory=FaultConfig)
    log_every: int = Field(default=1, ge=1)
    """Steps between logged metrics (lines in metrics.jsonl)."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out evaluations; 0 evaluates only before the first step and after the last."""
    evaluate_batches: int = Field(default=4, ge=1)
    """Global batches per held-out evaluation."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSettings":
        if self.steps and (problem := self.optimizer.too_long(self.steps)):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _fp8_is_used(self) -> "TrainSettings":
        if self.precision != "fp8" and self.fp8 != Fp8Config():
            raise ValueError(f"fp8 is set, but precision={self.precision}. Set precision: fp8, or leave fp8 out")
        return self
