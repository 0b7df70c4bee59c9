"""Long context: sequence lengths by step, copying, and evaluation."""

import itertools
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT, Strict


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LengthPhase:
    """A part of training with one full sequence length."""

    sequence_length: int = Field(ge=8)
    """Tokens of a full sequence."""

    from_step: int = Field(default=0, ge=0)
    """First step (from 0) of this phase; it ends where the next one begins."""


class LengthSettings(Strict):
    """Sequence lengths by step."""

    phases: tuple[LengthPhase, ...] = ()
    """Full sequence lengths, growing over the steps; each must divide `batch.sequence_length`. Empty: that length
    throughout."""

    full_length_share: float = Field(default=0.4, gt=0, le=1)
    """Share of sequences with the phase's full length. The others are halves, quarters and so on, equally many of
    each."""

    shortest: int = Field(default=256, ge=8)
    """Minimum length of a halved sequence."""


class LengthSchedule(LengthSettings):
    """Sequences of several lengths that grow from phase to phase (Qwen2.5-1M report: 40% at full length, 60% shorter).

    Every row of a batch holds `batch.sequence_length` tokens, split into sequences of one length, so all steps have the
    same number of tokens. A micro-batch's length is drawn from the seed and its index, so it is the same in every
    layout.
    """

    @model_validator(mode="after")
    def _phases_grow(self) -> "LengthSchedule":
        starts = [phase.from_step for phase in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
            raise ValueError(
                f"phases begin at steps {starts}: the first must begin at 0, each later one "
                "after the one before. Fix from_step"
            )
        return self

    def longest_at(self, step: int) -> int:
        """Full sequence length, in tokens, at a step (from 0)."""
        return next(phase.sequence_length for phase in reversed(self.phases) if phase.from_step <= step)

    def lengths(self, longest: int) -> tuple[int, ...]:
        """`longest` and the shorter lengths that occur with it, each half of the previous one."""
        lengths = [longest]
        while lengths[-1] % 2 == 0 and lengths[-1] // 2 >= self.shortest:
            lengths.append(lengths[-1] // 2)
        return tuple(lengths)

    def token_shares(self, longest: int) -> dict[int, float]:
        """Map each length to its share of tokens, so that `full_length_share` holds for the number of sequences."""
        full, *shorter = self.lengths(longest)
        if not shorter:
            return {full: 1.0}
        others = (1 - self.full_length_share) / len(shorter)
        tokens = {full: self.full_length_share * full} | {length: others * length for length in shorter}
        return {length: count / sum(tokens.values()) for length, count in tokens.items()}

    def mean_length(self, step: int) -> float:
        """Mean length of the sequence that a token of this step belongs to."""
        return sum(length * share for length, share in self.token_shares(self.longest_at(step)).items())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CopyingConfig:
    """Repeated random pieces, which teach a small model to retrieve what it has read, such as a needle.

    A random token can be predicted only from its earlier occurrence (Olsson et al. 2022, induction heads).
    """

    share: float = Field(gt=0, le=1)
    """Share of sequences in which such a piece replaces part of the text."""

    shortest: int = Field(default=8, ge=2)
    """Minimum tokens per piece; the maximum is a third of the sequence."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LongContextConfig:
    """Long-context evaluation: loss by position, and needle retrieval."""

    methods: tuple[str, ...] = Field(default=("none", "yarn", "ntk", "dca", "logn"), min_length=1)
    """Ways to extend the context without training: none, linear, yarn, ntk, dca, logn, windows, or several joined by +,
    such as dca+yarn."""

    lengths: tuple[Annotated[int, Field(ge=64)], ...] = Field(min_length=1)
    """Lengths, in tokens, of the texts that hold a needle; losses are measured up to the longest."""

    trained_length: int | None = Field(default=None, ge=8)
    """Longest sequence in the checkpoint's training; None for its max_position_embeddings."""

    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)
    """Positions of the needle: 0 is the start of the text, 1 is right before the question."""

    needles: int = Field(default=8, ge=1)
    """Needles per length and depth."""
