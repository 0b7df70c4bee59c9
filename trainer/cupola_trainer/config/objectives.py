"""Each objective's settings, which the recipe's stage inherits too, and the job's data class that adds input
folders."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_platform.strict import Strict
from cupola_trainer.config.lengths import CopyingConfig, LengthSchedule
from cupola_trainer.config.rl import GrpoData, OnlineDpoData, PairLossSettings, PpoData


class NextTokenSettings(Strict):
    """How packed tokens are sampled."""

    weights: dict[str, float] | None = None
    """Sampling weight per source; None for weights proportional to tokens."""

    reset_at_documents: bool = False
    """Confine attention to each document and restart positions at its start. Off: sequences span documents."""

    copying: CopyingConfig | None = None
    """Overwrite parts of the text with repeated random pieces; None leaves the text unchanged."""


class NextTokenData(NextTokenSettings):
    """Pretraining on packed tokens."""

    objective: Literal["next_token"] = "next_token"

    tokens: Path
    """Folder of a `tokens` artifact."""

    lengths: LengthSchedule | None = None
    """Schedule of sequence lengths; None for `batch.sequence_length` throughout."""


class PackingSettings(Strict):
    """How conversations are packed into rows."""

    pack: bool = True
    """Pack several conversations per row, each attending only to itself. Off: one per row, padded."""


def check_replay(pretraining: Path | str | None, share: float) -> None:
    """Check that pretraining text and its share are given together.

    Raises:
        ValueError: only one of them is given.
    """
    if (pretraining is not None) != (share > 0):
        raise ValueError(
            f"pretraining={pretraining} with pretraining_share={share:g}: mixing in text needs both, with a "
            "share above 0 (try 0.25). Give both, or leave both out"
        )


class SftSettings(PackingSettings):
    """Length of supervised fine-tuning, and how much pretraining text to mix in."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the conversations, instead of `steps`."""

    pretraining_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of rows that hold pretraining text, trained on every token; the others hold conversations."""


class SftData(SftSettings):
    """Supervised fine-tuning, with loss on assistant tokens only."""

    objective: Literal["sft"] = "sft"

    conversations: Path
    """Folder of a `conversations` artifact."""

    pretraining: Path | None = None
    """Folder of a `tokens` artifact to mix training text in from; None for no mixing."""

    @model_validator(mode="after")
    def _replayed(self) -> "SftData":
        check_replay(self.pretraining, self.pretraining_share)
        return self


REFERENCE_FREE = ("cpo", "simpo", "orpo")
"""Losses on pairs that need no reference model."""


class DpoSettings(PairLossSettings):
    """DPO's loss, with an optional SFT loss on the chosen responses."""

    loss_type: Literal["sigmoid", "ipo", "apo_zero", "apo_down", "kto", "cpo", "simpo", "orpo"] = "sigmoid"  # type: ignore[assignment]
    """DPO's own loss; IPO's squared one, which does not diverge on pairs that are already separated; APO's, which
    fixes whether chosen responses become likelier (`apo_zero`) or not (`apo_down`); KTO's, which judges each response
    by itself; or, without a reference, CPO's, SimPO's or ORPO's."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of chosen responses in KTO's loss."""

    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of rejected responses in KTO's loss."""

    target_margin: float = Field(default=0.0, ge=0)
    """SimPO's gamma: by how much beta times the mean log-probability of the chosen response should be higher."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean token loss on chosen responses, which keeps them likely while the margin grows."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the frozen initial model."""
        return self.loss_type not in REFERENCE_FREE

    @model_validator(mode="after")
    def _parts_of_the_loss(self) -> "DpoSettings":
        if self.target_margin and self.loss_type != "simpo":
            raise ValueError(f"target_margin with loss_type={self.loss_type}: only simpo has one. Leave it out")
        if self.loss_type != "kto" and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            raise ValueError(
                f"desirable_weight and undesirable_weight with loss_type={self.loss_type}: only kto has them. Leave "
                "them out"
            )
        if self.loss_type == "orpo" and not self.sft_weight:
            raise ValueError("loss_type=orpo without sft_weight: ORPO adds its term to SFT's loss. Set sft_weight: 1")
        return self


class DpoData(DpoSettings):
    """Direct preference optimization on pairs, against the frozen initial model."""

    objective: Literal["dpo"] = "dpo"

    preferences: Path
    """Folder of a `preferences` artifact."""

    reference: Path | None = None
    """Folder of a `reference` artifact: the frozen model's log-probabilities; None to compute them before the first
    step."""

    @model_validator(mode="after")
    def _reference_is_used(self) -> "DpoData":
        if self.reference and not self.needs_reference:
            raise ValueError(f"reference with loss_type={self.loss_type}, which has none. Leave it out")
        return self


class RewardSettings(Strict):
    """A reward model's ranking loss and sampling of pairs."""

    margin: float = Field(default=0.0, ge=0)
    """Weight of the pair's margin (its own, or the difference of its scores) in the loss."""

    center: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of both rewards, which keeps them centered at zero."""

    balance_tags: bool = False
    """Sample every tag (a pair's own, its task's name, or its source) equally often, whatever its share of the
    pairs."""


class RewardData(RewardSettings):
    """A reward model: a scalar head that ranks the responses of pairs."""

    head: ClassVar[Literal["scalar"]] = "scalar"

    objective: Literal["reward"] = "reward"

    preferences: Path
    """Folder of a `preferences` artifact."""


class DistillationSettings(PackingSettings):
    """The distillation loss on a teacher's next-token distributions."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """KL(teacher || student), which is mode-covering; KL(student || teacher), which is mode-seeking; or the generalized
    Jensen-Shannon divergence, which mixes both relative to their weighted mean."""

    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's weight in that mean (jsd only)."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of both distributions."""

    token_loss: float = Field(default=0.0, ge=0)
    """Weight of the next-token loss on the text, added to the divergence."""

    weights: dict[str, float] | None = None
    """Sampling weight per source of the corpus; None for weights proportional to tokens."""


class DistillationData(DistillationSettings):
    """Distillation of a teacher's next-token distributions, on pretraining data or conversations."""

    objective: Literal["distillation"] = "distillation"

    teacher: Path | None = None
    """Checkpoint folder of a teacher to run alongside, in the student's layout. Either this or `stored`."""

    stored: Path | None = None
    """Folder of a `teacher` artifact: a teacher's likeliest tokens for this job's samples."""

    tokens: Path | None = None
    """Folder of a `tokens` artifact, trained on every token. Either this or `conversations`."""

    conversations: Path | None = None
    """Folder of a `conversations` artifact, trained on assistant tokens."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "DistillationData":
        if (self.teacher is None) == (self.stored is None):
            raise ValueError("distillation uses either a live `teacher` or a `stored` one: give exactly one of them")
        return self

    @model_validator(mode="after")
    def _one_text(self) -> "DistillationData":
        if (self.tokens is None) == (self.conversations is None):
            raise ValueError("distillation reads either `tokens` or `conversations`: give exactly one of them")
        return self

    @property
    def text(self) -> NextTokenData | SftData:
        """The text, as the data of the corresponding objective."""
        if self.tokens:
            return NextTokenData(tokens=self.tokens, weights=self.weights)
        assert self.conversations
        return SftData(conversations=self.conversations, pack=self.pack)


TrainingData = Annotated[
    NextTokenData | SftData | DpoData | RewardData | DistillationData | GrpoData | PpoData | OnlineDpoData,
    Field(discriminator="objective"),
]
