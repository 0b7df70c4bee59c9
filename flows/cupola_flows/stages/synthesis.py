"""Text that a model makes: answers, questions in other words, questions about documents, answers mended by principles."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import Stage
from cupola_platform.endpoint import EndpointConfig
from cupola_trainer.config import ParallelConfig

CONSTITUTION = (
    "Be correct: no claim in the answer may be wrong or made up.",
    "Be helpful: answer what was asked, fully and directly.",
    "Be harmless: help nobody to hurt themselves, others, or what is theirs.",
    "Be honest: say what is not known, and pretend nothing.",
)


class SynthesizeStage(Stage):
    """A model writes conversations; what a filter does not pass is dropped and counted."""

    gives: ClassVar[str] = "conversations"
    takes: ClassVar[dict[str, str]] = {
        "conversations": "conversations",
        "tokens": "tokens",
        "writer": "checkpoint",
        "reward_model": "reward_model",
    }
    renders: ClassVar[bool] = True

    kind: Literal["synthesize"] = "synthesize"
    conversations: str | None = None
    """The stage whose conversations are answered anew, reworded or mended."""
    tokens: str | None = None
    """The stage whose documents are asked about (`make: questions`)."""
    make: Literal["answers", "variants", "questions", "revisions"] = "answers"
    """`answers`: the training questions, answered by the model. `variants`: the same questions in other words, with the
    answers they had. `questions`: a question about a document of the corpus, and its answer. `revisions`: the answers they
    had, criticised and rewritten by a principle of the constitution (Bai et al. 2022, section 3)."""
    endpoint: EndpointConfig | None = None
    """The model that writes, behind an OpenAI-compatible endpoint."""
    writer: str | None = None
    """The stage whose checkpoint writes, in place of an endpoint."""
    filter: Literal["scorer", "execution", "judge", "reward", "none"] = "scorer"
    """`scorer`: the question's verifiable task. `execution`: the answer's Python code must run, the tests of the
    question's row (`tests`) after it. `judge`: a model gives a mark from 0 to 10. `reward`: what `reward_model` gives.
    `none` keeps all."""
    judge: EndpointConfig | None = None
    """The model that marks; none for the one that writes."""
    reward_model: str | None = None
    """The stage whose reward model scores (`filter: reward`)."""
    min_score: float = 1.0
    """Score from which a row is kept: 1 for a scorer's or a program's yes; a judge's marks are divided by 10; rewards are
    as they come, of any sign."""
    keep: Literal["passing", "best"] = "passing"
    """Of each question: every text that passes, or the one of best score (rejection sampling, with `samples` above 1)."""
    constitution: tuple[str, ...] = Field(default=CONSTITUTION, min_length=1)
    """Principles of `revisions`: each text is mended by one of them, which the seed draws."""
    max_rows: int = Field(default=1000, ge=1)
    """Conversations, or documents, taken, at most."""
    document_characters: int = Field(default=4000, ge=1)
    """Of a document that is asked about: its beginning."""
    samples: int = Field(default=1, ge=1)
    """Texts made of each."""
    temperature: float = Field(default=0.7, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the conversations whose texts are kept from training."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)
    """How checkpoints (`writer`, `reward_model`) are laid out over processes."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SynthesizeStage":
        if (self.endpoint is None) == (self.writer is None):
            raise ValueError("give either `endpoint` or `writer` (a stage's checkpoint) to write, and not both")
        if (self.make == "questions") != (self.tokens is not None) or (self.tokens is None) == (
            self.conversations is None
        ):
            raise ValueError(
                "name `tokens` for make=questions, and `conversations` for answers, variants and revisions: one of them"
            )
        if (self.filter == "reward") != (self.reward_model is not None):
            raise ValueError("filter=reward and `reward_model` go together: give both or neither")
        if self.make in {"variants", "questions"} and self.filter in {"scorer", "execution"}:
            why = "variants keep the answers they had: " if self.make == "variants" else "questions have no task: "
            outcome = "would pass all" if self.make == "variants" else "has nothing to go by"
            raise ValueError(f"{why}filter={self.filter} {outcome}. Use judge, reward or none")
        return self
