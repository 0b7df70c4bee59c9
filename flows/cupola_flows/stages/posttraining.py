"""After pretraining: conversations, fine-tuning, preferences, alignment."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import Stage, TrainStage
from cupola_flows.stages.shapes import ModelShape
from cupola_trainer.config import OptimizerConfig, ParallelConfig, check_replay
from cupola_trainer.data.files import RowFiles
from cupola_trainer.data.instructions import TaskSource


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
    """Questions of each task kept from training, to be scored on; of files, a twentieth, at most as many."""
    files: tuple[RowFiles, ...] = ()
    """Conversations of others: files of rows in any format, or a Hugging Face dataset."""


class SftStage(TrainStage):
    """Supervised fine-tuning: ChatML, loss on assistant tokens only."""

    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "conversations": "conversations",
        "base": "checkpoint",
        "pretraining": "tokens",
    }
    renders: ClassVar[bool] = True

    kind: Literal["sft"] = "sft"
    parent: str | None = None
    """The stage whose checkpoint to fine-tune."""
    conversations: str | None = None
    """The stage that made the conversations."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=7e-6))
    """Qwen2's rate: 7e-6 falling to 7e-7 over two epochs."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0 for `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the conversations, in place of `steps`; two, as Qwen2, where neither is given."""
    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""
    pretraining: str | None = None
    """The stage whose tokens' training text is mixed in, so that the model does not unlearn it; none for no mixing."""
    pretraining_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all rows that are sequences of that text, every token of which is learnt; the others are conversations."""

    @model_validator(mode="after")
    def _replayed(self) -> "SftStage":
        check_replay(self.pretraining, self.pretraining_share)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "SftStage":
        if self.steps and self.epochs:
            raise ValueError(
                f"give either `steps` ({self.steps}) or `epochs` ({self.epochs:g}), and not both (steps=0 for epochs)"
            )
        return self


class PreferencesStage(Stage):
    """Answers sampled from a checkpoint and scored -> pairs of a better and a worse one."""

    gives: ClassVar[str] = "preferences"
    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "conversations": "conversations",
        "reward_model": "reward_model",
    }
    renders: ClassVar[bool] = True

    kind: Literal["preferences"] = "preferences"
    parent: str | None = None
    """The stage whose checkpoint answers."""
    conversations: str | None = None
    """The stage whose questions are asked."""
    score_by: Literal["task", "execution", "reward"] = "task"
    """`task`: the questions' verifiable tasks. `execution`: an answer's Python code must run, the tests of the question's
    row (`tests`) after it. `reward`: what `reward_model` gives; the widest differences make the pairs."""
    reward_model: str | None = None
    """The stage whose reward model scores (`score_by: reward`)."""
    min_gap: float = Field(default=0.0, ge=0)
    """Least difference between the two scores of a pair."""
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

    @model_validator(mode="after")
    def _scorer_is_there(self) -> "PreferencesStage":
        if (self.score_by == "reward") != (self.reward_model is not None):
            raise ValueError("score_by=reward and `reward_model` go together: give both or neither")
        return self


class PairsStage(Stage):
    """Preference pairs of others, from files, -> pairs to learn from."""

    gives: ClassVar[str] = "preferences"

    kind: Literal["pairs"] = "pairs"
    files: tuple[RowFiles, ...] = Field(min_length=1)
    """Files of rows in any format, or a Hugging Face dataset: `prompt`, `chosen` and `rejected`, or a published set's columns."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are kept from training."""


class DpoStage(TrainStage):
    """Direct preference optimization against the frozen parent."""

    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "preferences": "preferences",
        "base": "checkpoint",
    }
    renders: ClassVar[bool] = True

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


class RewardStage(TrainStage):
    """A reward model from pairs: a language model with a scalar head, or a reward model that is trained on."""

    gives: ClassVar[str] = "reward_model"
    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "reward": "reward_model",
        "preferences": "preferences",
    }
    renders: ClassVar[bool] = True

    kind: Literal["reward"] = "reward"
    parent: str | None = None
    """The stage whose language model gets the scalar head."""
    reward: str | None = None
    """The stage whose reward model to go on from, in place of `parent`: preference-model pretraining, then fine-tuning."""
    preferences: str | None = None
    """The stage that made the pairs."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=3e-6))
    """Qwen's rate."""
    margin: float = Field(default=0.0, ge=0)
    """Weight of a pair's margin (its own, or by how much its scores differ), which the rewards are asked to differ by."""
    center: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of both rewards, which keeps them around zero."""
    balance_tags: bool = False
    """Each tag (a pair's own, its task's name, or its source) is read equally often, whatever its share of the pairs."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "RewardStage":
        if self.parent and self.reward:
            raise ValueError("give either `parent` (a language model) or `reward` (a reward model), and not both")
        return self


class DistillationStage(TrainStage):
    """A student that learns a live teacher's next-token distributions, on the corpus or on conversations."""

    takes: ClassVar[dict[str, str]] = {
        "teacher": "checkpoint",
        "parent": "checkpoint",
        "tokens": "tokens",
        "conversations": "conversations",
    }
    renders: ClassVar[bool] = True

    kind: Literal["distillation"] = "distillation"
    teacher: str | None = None
    """The stage whose checkpoint teaches; none for the nearest earlier one."""
    parent: str | None = None
    """The stage whose checkpoint is the student."""
    model: ModelShape | None = None
    """Shape of a new student, in place of `parent`: values, or a published model's (`preset: NAME`) with changes."""
    tokens: str | None = None
    """The stage whose corpus is learnt from. Either this or `conversations`."""
    conversations: str | None = None
    """The stage whose conversations are learnt from: the assistant's tokens."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """KL(teacher || student), KL(student || teacher), or generalised Jensen-Shannon."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mean that jsd compares with."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions."""
    token_loss: float = Field(default=0.0, ge=0)
    """Weight of the text's own next-token loss beside the divergence."""
    stored_top_k: int | None = Field(default=None, ge=1)
    """Ask the teacher once, before training, and keep so many likeliest tokens at each place, as an artifact that other
    students of the same text use too; none for a live teacher, beside the student."""
    teacher_layout: ParallelConfig | None = None
    """How a teacher that is asked once is laid out; none for `layout`."""
    weights: dict[str, float] | None = None
    """Sampling weight per source of the corpus; none for weights in proportion to tokens."""
    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""

    @model_validator(mode="after")
    def _one_student_one_text(self) -> "DistillationStage":
        if (self.model is None) == (self.parent is None):
            raise ValueError("give either `model` (a new student) or `parent` (a stage to go on from), and not both")
        if (self.tokens is None) == (self.conversations is None):
            raise ValueError("name either `tokens` or `conversations` to learn from, and not both")
        return self
