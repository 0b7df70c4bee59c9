"""Text that a model makes: answers to questions, and questions in other words."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import Stage
from cupola_platform.endpoint import EndpointConfig


class SynthesizeStage(Stage):
    """A model behind an endpoint writes conversations; what a filter does not pass is dropped and counted."""

    gives: ClassVar[str] = "conversations"
    takes: ClassVar[dict[str, str]] = {"conversations": "conversations"}

    kind: Literal["synthesize"] = "synthesize"
    conversations: str | None = None
    """The stage whose conversations are answered anew or reworded."""
    make: Literal["answers", "variants"] = "answers"
    """`answers`: the training questions, answered by the model. `variants`: the same questions in other words, with the
    answers they had."""
    endpoint: EndpointConfig
    """The model that writes."""
    filter: Literal["scorer", "execution", "judge", "none"] = "scorer"
    """`scorer`: the question's verifiable task. `execution`: the answer's Python code must run, the tests of the
    question's row (`tests`) after it. `judge`: the endpoint's model gives a mark from 0 to 10. `none` keeps all."""
    judge: EndpointConfig | None = None
    """The model that marks; none for the one that writes."""
    min_score: float = Field(default=1.0, ge=0)
    """Score from which a row is kept: 1 for a scorer's or a program's yes; a judge's marks are divided by 10."""
    max_rows: int = Field(default=1000, ge=1)
    """Conversations taken, at most."""
    samples: int = Field(default=1, ge=1)
    """Texts made of each."""
    temperature: float = Field(default=0.7, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the conversations whose texts are kept from training."""

    @model_validator(mode="after")
    def _variants_keep_their_answers(self) -> "SynthesizeStage":
        if self.make == "variants" and self.filter in {"scorer", "execution"}:
            raise ValueError(
                f"variants keep the answers they had: filter={self.filter} would pass all. Use judge or none"
            )
        return self
