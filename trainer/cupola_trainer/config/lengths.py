"""Long context: what changes in a model's positions, and how long the sequences are, step by step."""

import itertools
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT, Strict


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LengthPhase:
    """A part of training in which the longest sequences have one length."""

    sequence_length: int = Field(ge=8)
    """Tokens of a full sequence."""

    from_step: int = Field(default=0, ge=0)
    """The first step (from 0) of this phase; it ends where the next one begins."""


class LengthSettings(Strict):
    """How long sequences are, step by step."""

    phases: tuple[LengthPhase, ...] = ()
    """Lengths of a full sequence, growing with the steps; each divides `batch.sequence_length`. Empty:
    that one throughout."""

    full_length_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the sequences that have the phase's full length. The others are halves, quarters and so on,
    as many of each."""

    shortest: int = Field(default=256, ge=8)
    """No sequence is halved below this."""


class LengthSchedule(LengthSettings):
    """Sequences of several lengths, longer from phase to phase (Qwen2.5-1M report: 40% at full length, 60% shorter).

    Every row of a batch holds `batch.sequence_length` tokens, cut into sequences of one length: all steps have as many
    tokens. Which length a micro-batch has is drawn from the seed and its number,
    so that it is the same in every layout.
    """

    @model_validator(mode="after")
    def _phases_grow(self) -> "LengthSchedule":
        starts = [phase.from_step for phase in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
            raise ValueError(
                f"phases begin at the steps {starts}: the first must begin at 0, each later one after the last"
            )
        return self

    def longest_at(self, step: int) -> int:
        """Tokens of a full sequence in a step, counted from 0."""
        return next(phase.sequence_length for phase in reversed(self.phases) if phase.from_step <= step)

    def lengths(self, longest: int) -> tuple[int, ...]:
        """The lengths that occur beside `longest`, itself first: each half of the one before."""
        lengths = [longest]
        while lengths[-1] % 2 == 0 and lengths[-1] // 2 >= self.shortest:
            lengths.append(lengths[-1] // 2)
        return tuple(lengths)

    def token_shares(self, longest: int) -> dict[int, float]:
        """Length to the share of tokens in sequences of that length, so that `full_length_share` is met by number."""
        full, *shorter = self.lengths(longest)
        if not shorter:
            return {full: 1.0}
        others = (1 - self.full_length_share) / len(shorter)
        tokens = {full: self.full_length_share * full} | {length: others * length for length in shorter}
        return {length: count / sum(tokens.values()) for length, count in tokens.items()}

    def mean_length(self, step: int) -> float:
        """Tokens of the sequence that a token of this step belongs to, on average."""
        return sum(length * share for length, share in self.token_shares(self.longest_at(step)).items())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CopyingConfig:
    """Random pieces that sequences say again: what teaches a small model to find what it has read, as a needle.

    What follows a random token can be told from nothing but an earlier occurrence (Olsson et al. 2022,
    induction heads).
    """

    share: float = Field(gt=0, le=1)
    """Share of the sequences that have such a piece in place of a part of their text."""

    shortest: int = Field(default=8, ge=2)
    """Tokens of a piece, at least; at most a third of the sequence."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LongContextConfig:
    """How far a checkpoint reads: loss by position, and words that it must find again."""

    methods: tuple[str, ...] = Field(default=("none", "yarn", "ntk", "dca", "logn"), min_length=1)
    """Ways to read past the trained length without training: none, linear, yarn, ntk, dca, logn, windows, or several:
    dca+yarn."""

    lengths: tuple[Annotated[int, Field(ge=64)], ...] = Field(min_length=1)
    """Tokens of the texts that hold a needle; losses are taken up to the longest."""

    trained_length: int | None = Field(default=None, ge=8)
    """Longest sequence that the checkpoint was trained at; none for its max_position_embeddings."""

    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)
    """Where the needle lies: 0 at the beginning of the text, 1 right before the question."""

    needles: int = Field(default=8, ge=1)
    """Needles for each length and depth."""
