"""What every stage has in common, and every one that trains."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    LoraConfig,
    OptimizerConfig,
    ParallelConfig,
)


class Stage(BaseModel):
    """One typed step of a recipe: takes artifacts, gives one artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    gives: ClassVar[str]
    """The artifact's kind."""
    takes: ClassVar[dict[str, str]] = {}
    """Field that names another stage, to the artifact kind that it must give."""

    renders: ClassVar[bool] = False
    """Whether it puts conversations through a chat template, so that the recipe's `template_date` decides its tokens."""

    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of this stage; none for the recipe's."""


class TrainStage(Stage):
    """What every stage that trains has in common."""

    gives: ClassVar[str] = "checkpoint"

    layout: ParallelConfig = Field(default_factory=ParallelConfig)
    """How the model is laid out over processes."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    """Train adapters on the frozen parent and fold them in at the end; none to train every weight."""
    batch: BatchConfig
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; bf16 keeps fp32 master weights, gradients and moments. Auto: bf16 on GPUs, fp32 on CPUs."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    faults: FaultConfig = Field(default_factory=FaultConfig)
    log_every: int = Field(default=1, ge=1)
    """Steps between points on the curves."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out losses; 0 for before the first step and after the last only."""
    evaluate_batches: int = Field(default=4, ge=1)
    """Global batches in one held-out loss."""

    @property
    def base(self) -> str | None:
        """The stage whose checkpoint `optimizer.merging` starts at; an input like others, where a kind takes it."""
        merging = self.optimizer.merging
        return str(merging.base) if merging else None

    @model_validator(mode="after")
    def _base_is_taken(self) -> "TrainStage":
        if self.base is not None and "base" not in self.takes:
            raise ValueError(
                "optimizer.merging: this kind of stage has no fine-tuned parent to hold on to. Leave it out"
            )
        return self
