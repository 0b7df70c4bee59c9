"""The stages of a recipe, typed: what each one takes, what it gives, and everything that a person may set in it.

A field named in `takes` holds the name of another stage, or `artifact:ID` for what the registry already has. Left out,
it means the nearest earlier stage that gives what is needed.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cupola_platform.corpus.config import PrepareConfig
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ParallelConfig,
)
from cupola_trainer.data.instructions import TaskSource


class Stage(BaseModel):
    """One typed step of a recipe: takes artifacts, gives one artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    gives: ClassVar[str]
    """The artifact's kind."""
    takes: ClassVar[dict[str, str]] = {}
    """Field that names another stage, to the artifact kind that it must give."""

    seed: int | None = None
    """Seed of this stage; none for the recipe's."""


class PrepareStage(Stage):
    """Raw text -> clean, deduplicated, tokenized shards, and the tokenizer."""

    gives: ClassVar[str] = "tokens"

    kind: Literal["prepare"] = "prepare"
    corpus: PrepareConfig
    """Sources, cleaning, deduplication, held-out split and tokenizer."""


class TrainStage(Stage):
    """What every stage that trains has in common."""

    gives: ClassVar[str] = "checkpoint"

    layout: ParallelConfig = Field(default_factory=ParallelConfig)
    """How the model is laid out over processes."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
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


class PretrainStage(TrainStage):
    """Next-token training on packed tokens, from random weights (`model`) or from a checkpoint (`parent`)."""

    takes: ClassVar[dict[str, str]] = {"tokens": "tokens", "parent": "checkpoint"}

    kind: Literal["pretrain"] = "pretrain"
    tokens: str | None = None
    """The stage that prepared the tokens."""
    parent: str | None = None
    """The stage whose checkpoint to go on from."""
    model: ModelConfig | None = None
    """Shape of a new model."""
    weights: dict[str, float] | None = None
    """Sampling weight per source; none for weights in proportion to tokens."""
    reset_at_documents: bool = False
    """Each document sees only itself: attention ends, and positions begin, at its borders. Off: sequences run across."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "PretrainStage":
        if (self.model is None) == (self.parent is None):
            raise ValueError("give either `model` (a new model) or `parent` (a stage to go on from), and not both")
        return self


class UpcycleStage(Stage):
    """A dense checkpoint -> a mixture of experts, the Qwen2 way."""

    gives: ClassVar[str] = "checkpoint"
    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint"}

    kind: Literal["upcycle"] = "upcycle"
    parent: str | None = None
    """The stage whose dense checkpoint to upcycle."""
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
    layout: ParallelConfig = Field(default_factory=ParallelConfig)


class ConversationsStage(Stage):
    """Verifiable tasks and corpus documents -> conversations to learn from, and tasks to be scored on."""

    gives: ClassVar[str] = "conversations"
    takes: ClassVar[dict[str, str]] = {"tokens": "tokens"}

    kind: Literal["conversations"] = "conversations"
    tokens: str | None = None
    """The stage whose documents and tokenizer to use."""
    tasks: tuple[TaskSource, ...] = ()
    """Generators of verifiable questions."""
    corpus_conversations: int = Field(default=0, ge=0)
    """Training conversations to make from the corpus's documents."""
    heldout_per_task: int = Field(default=100, ge=1)
    """Questions of each task kept from training, to be scored on."""


class SftStage(TrainStage):
    """Supervised fine-tuning: ChatML, loss on assistant tokens only."""

    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint", "conversations": "conversations"}

    kind: Literal["sft"] = "sft"
    parent: str | None = None
    """The stage whose checkpoint to fine-tune."""
    conversations: str | None = None
    """The stage that made the conversations."""
    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""


class PreferencesStage(Stage):
    """Answers sampled from a checkpoint and scored -> pairs of a better and a worse one."""

    gives: ClassVar[str] = "preferences"
    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint", "conversations": "conversations"}

    kind: Literal["preferences"] = "preferences"
    parent: str | None = None
    """The stage whose checkpoint answers."""
    conversations: str | None = None
    """The stage whose tasks are asked."""
    num_samples: int = Field(default=4, ge=2)
    """Answers per prompt."""
    max_prompts: int = Field(default=512, ge=1)
    """Tasks asked, at most."""
    pairs_per_prompt: int = Field(default=2, ge=1)
    """Pairs made of one prompt's answers, at most."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are kept from training."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Likeliest tokens to draw from; 0 for all."""
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Answers sampled together."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)


class DpoStage(TrainStage):
    """Direct preference optimization against the frozen parent."""

    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint", "preferences": "preferences"}

    kind: Literal["dpo"] = "dpo"
    parent: str | None = None
    """The stage whose checkpoint to align; it is the frozen reference too."""
    preferences: str | None = None
    """The stage that made the pairs."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's own loss, or IPO's squared one, which does not run off on pairs that are already told apart."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' mean token loss beside it: keeps them likely while the margin grows."""


class EvaluateStage(Stage):
    """Held-out bits per byte, task accuracy and generations, for every checkpoint."""

    gives: ClassVar[str] = "evaluation"
    takes: ClassVar[dict[str, str]] = {
        "checkpoints": "checkpoint",
        "tokens": "tokens",
        "conversations": "conversations",
    }

    kind: Literal["evaluate"] = "evaluate"
    checkpoints: tuple[str, ...] = ()
    """The stages whose checkpoints to measure; empty for every earlier one that trained."""
    tokens: str | None = None
    """The stage whose held-out shards to use."""
    conversations: str | None = None
    """The stage whose held-out tasks to ask."""
    max_heldout_tokens: int = Field(default=65_536, ge=1)
    window: int | None = Field(default=None, ge=8)
    """Most tokens of context in a held-out loss; none for the model's longest sequence. Give the length that it was
    trained at where that is shorter: positions that were never trained make a model look worse."""
    max_tasks: int = Field(default=200, ge=1)
    """Held-out tasks per task name."""
    max_new_tokens: int = Field(default=32, ge=1)
    sample_prompts: tuple[str, ...] = ()
    """Plain texts that each checkpoint continues, greedily, to be read by people."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)


class PromoteStage(Stage):
    """Move an alias to a checkpoint, if the numbers allow it."""

    gives: ClassVar[str] = "promotion"
    takes: ClassVar[dict[str, str]] = {
        "candidate": "checkpoint",
        "baseline": "checkpoint",
        "evaluation": "evaluation",
    }

    kind: Literal["promote"] = "promote"
    candidate: str | None = None
    """The stage whose checkpoint may be promoted; none for the last that trained."""
    baseline: str | None = None
    """The stage whose checkpoint the candidate must beat on tasks; none for the last pretraining."""
    evaluation: str | None = None
    """The stage whose numbers decide."""
    alias: str = Field(default="champion", pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """The name that moves."""
    bits_per_byte_tolerance: float = Field(default=0.05, ge=0)
    """How much worse, relative, held-out bits per byte may be than the incumbent's."""


AnyStage = Annotated[
    PrepareStage
    | PretrainStage
    | UpcycleStage
    | ConversationsStage
    | SftStage
    | PreferencesStage
    | DpoStage
    | EvaluateStage
    | PromoteStage,
    Field(discriminator="kind"),
]

KINDS: tuple[str, ...] = (
    "prepare",
    "pretrain",
    "upcycle",
    "conversations",
    "sft",
    "preferences",
    "dpo",
    "evaluate",
    "promote",
)
NEVER_GUESSED: frozenset[tuple[str, str]] = frozenset({("pretrain", "parent")})
"""Inputs that are absent when a recipe does not name them."""
OPTIONAL: frozenset[tuple[str, str]] = NEVER_GUESSED | {("evaluate", "conversations"), ("promote", "baseline")}
"""Inputs that a stage can do without."""
