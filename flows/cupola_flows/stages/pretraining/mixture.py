"""Sampling weights of a pretraining stage's sources, and their adjustment."""

from typing import Annotated, Protocol

from pydantic import Field

from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.core.sampling_weights import training_tokens, with_epoch_caps, with_temperature
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_platform.strict import Strict
from cupola_trainer.config import BatchConfig


class Mixture(Strict):
    """Adjusts the weights of sources: first the temperature, then the caps."""

    temperature: float = Field(default=1.0, ge=1)
    """Temperature of languages: a share p becomes proportional to p^(1/temperature). 1 has no effect, mT5 uses 3.3."""
    max_epochs: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Maximum epochs over a source in this stage, by source. Weight beyond that goes to the other sources."""


class Sampled(Protocol):
    """A stage that samples a corpus by weights."""

    @property
    def weights(self) -> dict[str, float] | None: ...
    @property
    def mixture(self) -> Mixture | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> BatchConfig: ...


def sampling_weights(stage: Sampled, tokens: Artifact) -> dict[str, float] | None:
    """The weights of the stage or of the sources, adjusted by its mixture. None means in proportion to tokens.

    Raises:
        ConfigError: the mixture names an unknown source, or its caps leave too little text.
    """
    given = stage.weights or source_weights(tokens)
    if stage.mixture is None:
        return given
    by_language = training_tokens(tokens.path)
    totals = {name: sum(of.values()) for name, of in by_language.items()}
    for name in stage.mixture.max_epochs:
        if name not in totals:
            raise ConfigError(f"mixture.max_epochs: there is no source {name!r}.{did_you_mean(name, totals)}")
    weights = {name: weight for name, weight in (given or totals).items() if name in totals and weight > 0}
    weights = with_temperature(weights, by_language, stage.mixture.temperature)
    budget = stage.steps * stage.batch.global_batch_size * stage.batch.sequence_length
    return dict.fromkeys(given or totals, 0.0) | with_epoch_caps(weights, totals, budget, stage.mixture.max_epochs)


def source_weights(tokens: Artifact) -> dict[str, float] | None:
    """The weights set in the sources; None unless all sources set one."""
    sources = tokens.manifest.config.get("corpus", {}).get("sources", {})
    weights = {name: source["weight"] for name, source in sources.items() if source.get("weight")}
    return weights if weights and len(weights) == len(sources) else None
