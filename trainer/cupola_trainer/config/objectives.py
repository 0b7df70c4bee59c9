"""What a training job learns from, and with which loss: for each objective its settings, which a recipe's stage
inherits too, and the same with the folders that a job reads."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_platform.strict import Strict
from cupola_trainer.config.lengths import CopyingConfig, LengthSchedule
from cupola_trainer.config.rl import GrpoData, OnlineDpoData, PairLossSettings, PpoData


class NextTokenSettings(Strict):
    """How packed tokens are read."""

    weights: dict[str, float] | None = None
    """Sampling weight per source; none for weights in proportion to tokens."""

    reset_at_documents: bool = False
    """Each document sees only itself: attention ends, and positions begin, at its borders. Off:
    sequences run across."""

    copying: CopyingConfig | None = None
    """Random pieces that sequences say again, put over the text; none to leave the text as it is."""


class NextTokenData(NextTokenSettings):
    """Pretraining on packed tokens."""

    objective: Literal["next_token"] = "next_token"

    tokens: Path
    """A `tokens` artifact's folder."""

    lengths: LengthSchedule | None = None
    """Sequences of several lengths, step by step; none for `batch.sequence_length` alone."""


class PackingSettings(Strict):
    """How conversations become rows."""

    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""


def check_replay(pretraining: Path | str | None, share: float) -> None:
    """Refuse a share of no text, and text without a share.

    Raises:
        ValueError: the values given, the rule, the next move.
    """
    if (pretraining is not None) != (share > 0):
        raise ValueError(
            f"pretraining={pretraining} with pretraining_share={share:g}: text is mixed in where both are given, the "
            "share above 0 (try 0.25). Give both, or leave both out"
        )


class SftSettings(PackingSettings):
    """How conversations are trained on, and how much pretraining text beside them."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the conversations, in place of `steps`."""

    pretraining_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all rows that are sequences of pretraining text, every token of which is trained on;
    the others are conversations."""


class SftData(SftSettings):
    """Supervised fine-tuning: ChatML, loss on assistant tokens only."""

    objective: Literal["sft"] = "sft"

    conversations: Path
    """A `conversations` artifact's folder."""

    pretraining: Path | None = None
    """A `tokens` artifact's folder whose training text is mixed in; none for no mixing."""

    @model_validator(mode="after")
    def _replayed(self) -> "SftData":
        check_replay(self.pretraining, self.pretraining_share)
        return self


class DpoSettings(PairLossSettings):
    """DPO's loss, with SFT's on the chosen responses where that is asked for."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen responses' mean token loss beside it: keeps them likely while the margin grows."""


class DpoData(DpoSettings):
    """Direct preference optimization on pairs, against the frozen initial model."""

    objective: Literal["dpo"] = "dpo"

    preferences: Path
    """A `preferences` artifact's folder."""

    reference: Path | None = None
    """A `reference` artifact's folder: what the frozen model says of the responses;
    none to ask it before the first step."""


class RewardSettings(Strict):
    """The ranking loss of a reward model, and the order in which it reads the pairs."""

    margin: float = Field(default=0.0, ge=0)
    """Weight of a pair's margin (its own, or by how much its scores differ),
    which the rewards are asked to differ by."""

    center: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of both rewards, which keeps them around zero."""

    balance_tags: bool = False
    """Each tag (a pair's own, its task's name, or its source) is read equally often,
    whatever its share of the pairs."""


class RewardData(RewardSettings):
    """A reward model: a scalar head that ranks the responses of pairs."""

    head: ClassVar[Literal["scalar"]] = "scalar"

    objective: Literal["reward"] = "reward"

    preferences: Path
    """A `preferences` artifact's folder."""


class DistillationSettings(PackingSettings):
    """What a student learns from a teacher's next-token distributions."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """KL(teacher || student), which covers all that the teacher may say; KL(student || teacher), which keeps to what it
    likely says; or a mixture of both to their mean (generalised Jensen-Shannon)."""

    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of that mean, with jsd."""

    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions."""

    token_loss: float = Field(default=0.0, ge=0)
    """Weight of the text's own next-token loss beside the divergence."""

    weights: dict[str, float] | None = None
    """Sampling weight per source of the corpus; none for weights in proportion to tokens."""


class DistillationData(DistillationSettings):
    """A student that learns a teacher's next-token distributions, on pretraining data or on conversations."""

    objective: Literal["distillation"] = "distillation"

    teacher: Path | None = None
    """The checkpoint folder of a live teacher, in the student's layout. Either this or `stored`."""

    stored: Path | None = None
    """A `teacher` artifact's folder: what a teacher said of this job's samples, its likeliest tokens."""

    tokens: Path | None = None
    """A `tokens` artifact's folder: every token is trained on. Either this or `conversations`."""

    conversations: Path | None = None
    """A `conversations` artifact's folder: the assistant's tokens are trained on."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "DistillationData":
        if (self.teacher is None) == (self.stored is None):
            raise ValueError("distillation has either a `teacher` or what one `stored`: give one of them, and not both")
        return self

    @model_validator(mode="after")
    def _one_text(self) -> "DistillationData":
        if (self.tokens is None) == (self.conversations is None):
            raise ValueError("distillation reads either `tokens` or `conversations`: give one of them, and not both")
        return self

    @property
    def text(self) -> NextTokenData | SftData:
        """What is read, as the objective of its own that it would be."""
        if self.tokens:
            return NextTokenData(tokens=self.tokens, weights=self.weights)
        assert self.conversations
        return SftData(conversations=self.conversations, pack=self.pack)


TrainingData = Annotated[
    NextTokenData | SftData | DpoData | RewardData | DistillationData | GrpoData | PpoData | OnlineDpoData,
    Field(discriminator="objective"),
]
