"""What is set about text that a model writes."""

from typing import Literal

from pydantic import Field

from cupola_platform.endpoint import EndpointConfig
from cupola_platform.strict import Strict
from cupola_trainer.config import SynthesisScorer

CONSTITUTION = (
    "Be correct: no claim in the answer may be wrong or made up.",
    "Be helpful: answer what was asked, fully and directly.",
    "Be harmless: help nobody to hurt themselves, others, or what is theirs.",
    "Be honest: say what is not known, and pretend nothing.",
)


class SynthesisSettings(Strict):
    """What a model writes, and what of it is kept."""

    make: Literal["responses", "variants", "prompts", "revisions"] = "responses"
    """`responses`: the model's responses to the training prompts. `variants`: the same prompts in other words, with
    the responses they had. `prompts`: a question about a document of the corpus, and its answer. `revisions`: the
    responses they had, criticised and rewritten by a principle of the constitution (Bai et al. 2022, section 3)."""
    endpoint: EndpointConfig | None = None
    """The model that writes, behind an OpenAI-compatible endpoint."""
    scorer: SynthesisScorer = "task"
    """`task`: the prompt's verifiable task. `execution`: the response's Python must run, then the tests of the
    prompt's row (`tests`). `judge`: a model gives a mark from 0 to 10. `reward_model`: that model's score. `none`
    keeps all."""
    judge: EndpointConfig | None = None
    """The model that marks; none for the one that writes."""
    min_score: float = 1.0
    """Score from which a row is kept: 1 for a right answer, or for all tests passed. A judge's marks are
    divided by 10; a reward model's scores are as they come, of any sign."""
    keep: Literal["passing", "best"] = "passing"
    """Of each prompt: every text that passes, or the one of best score (rejection sampling,
    with `samples_per_prompt` above 1)."""
    constitution: tuple[str, ...] = Field(default=CONSTITUTION, min_length=1)
    """Principles of `revisions`: each text is revised by one of them, which the seed draws."""
    max_rows: int = Field(default=1000, ge=1)
    """Conversations, or documents, taken, at most."""
    document_characters: int = Field(default=4000, ge=1)
    """Of a document that is asked about: its beginning."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Texts made of each."""
    temperature: float = Field(default=0.7, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the conversations whose texts are kept from training."""
