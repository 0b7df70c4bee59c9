"""Settings of synthetic data."""

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
    """What a model writes, and which of it is kept."""

    make: Literal["responses", "variants", "prompts", "revisions"] = "responses"
    """`responses`: new responses to the training prompts. `variants`: reworded prompts with their original responses.
    `prompts`: a question about a corpus document, with its answer. `revisions`: the original responses, criticised and
    rewritten by a principle of the constitution (Bai et al. 2022, section 3)."""
    endpoint: EndpointConfig | None = None
    """OpenAI-compatible endpoint of the model that writes."""
    scorer: SynthesisScorer = "task"
    """`task`: the prompt's verifiable task. `execution`: the response's Python code must run, followed by the `tests`
    of the prompt's row. `judge`: a model gives a mark from 0 to 10. `reward_model`: its score. `none` keeps all."""
    judge: EndpointConfig | None = None
    """Endpoint of the judge; None for the model that writes."""
    min_score: float = 1.0
    """Minimum score to keep a row. 1 means a correct answer or all tests passed. A judge's marks are divided by 10; a
    reward model's scores are unscaled and of either sign."""
    keep: Literal["passing", "best"] = "passing"
    """Per prompt, keep every passing text or only the best (rejection sampling, with `samples_per_prompt` above 1)."""
    constitution: tuple[str, ...] = Field(default=CONSTITUTION, min_length=1)
    """Principles for `revisions`; the seed selects one for each text."""
    max_rows: int = Field(default=1000, ge=1)
    """Maximum number of conversations or documents to use."""
    document_characters: int = Field(default=4000, ge=1)
    """Leading characters of a document in its prompt."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Texts per conversation or document."""
    temperature: float = Field(default=0.7, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the conversations or documents whose texts are held out."""
