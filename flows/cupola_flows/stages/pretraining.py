"""From raw text to a pretrained model: tokens, dense training, upcycling."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import Stage, TrainStage
from cupola_flows.stages.mixture import Mixture
from cupola_flows.stages.shapes import ModelShape
from cupola_platform.corpus.config import PrepareConfig
from cupola_trainer.config import CopyingConfig, MoEConfig, ParallelConfig


class PrepareStage(Stage):
    """Raw text -> clean, deduplicated, tokenized shards, and the tokenizer."""

    gives: ClassVar[str] = "tokens"
    takes: ClassVar[dict[str, str]] = {"judge": "checkpoint"}

    kind: Literal["prepare"] = "prepare"
    judge: str | None = None
    """The small model that `corpus.perplexity` asks: a stage of an earlier corpus, or `artifact:ID`."""
    corpus: PrepareConfig
    """Sources, cleaning, deduplication, held-out split and tokenizer."""

    @model_validator(mode="after")
    def _a_judge_is_asked(self) -> "PrepareStage":
        if bool(self.judge) != bool(self.corpus.perplexity):
            raise ValueError(
                "`judge` (a model) and `corpus.perplexity` (its bounds) need each other: give both or neither"
            )
        return self


class PretrainStage(TrainStage):
    """Next-token training on packed tokens, from random weights (`model`) or from a checkpoint (`parent`)."""

    takes: ClassVar[dict[str, str]] = {"tokens": "tokens", "parent": "checkpoint"}

    kind: Literal["pretrain"] = "pretrain"
    tokens: str | None = None
    """The stage that prepared the tokens."""
    parent: str | None = None
    """The stage whose checkpoint to go on from."""
    model: ModelShape | None = None
    """Shape of a new model: values, or a published model's (`preset: NAME`) with changes."""
    weights: dict[str, float] | None = None
    """Sampling weight per source; none for weights in proportion to tokens."""
    mixture: Mixture | None = None
    """What bends the weights: temperature over languages, caps on epochs."""
    reset_at_documents: bool = False
    """Each document sees only itself: attention ends, and positions begin, at its borders. Off: sequences run across."""
    copying: CopyingConfig | None = None
    """Random pieces that sequences say again, put over the text; none to leave the text as it is."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "PretrainStage":
        if (self.model is None) == (self.parent is None):
            raise ValueError("give either `model` (a new model) or `parent` (a stage to go on from), and not both")
        if self.lora and self.model:
            raise ValueError("lora: adapters need a model that knows something. Give `parent`, or leave lora out")
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
