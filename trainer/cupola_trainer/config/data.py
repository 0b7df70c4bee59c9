"""What a training job learns from, and with which loss: one class an objective."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_trainer.architecture import STRICT
from cupola_trainer.config.lengths import LengthSchedule


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

    lengths: LengthSchedule | None = None
    """Sequences of several lengths, step by step; none for `batch.sequence_length` alone."""


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


TrainingData = Annotated[NextTokenData | SftData | DpoData, Field(discriminator="objective")]

SCALAR: frozenset[str] = frozenset({"reward"})
"""Objectives whose model has a scalar head in place of the language model's."""
