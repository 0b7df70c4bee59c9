"""The weights by which a pretraining's sources are sampled, and what bends them."""

from typing import Annotated, Protocol

from pydantic import Field

from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.core.sampling_weights import training_tokens, with_epoch_caps, with_temperature
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_platform.strict import Strict
from cupola_trainer.config import BatchConfig


class Mixture(Strict):
    """Applied to the weights by source, first temperature, then caps."""

    temperature: float = Field(default=1.0, ge=1)
    """Of languages: a language's share p becomes proportional to p^(1/temperature). 1 leaves it; 3.3 is mT5's."""
    max_epochs: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Times that this stage may read a source, by source; what its weight asks beyond that goes to the others."""


class Sampled(Protocol):
    """A stage that reads a corpus by weights."""

    @property
    def weights(self) -> dict[str, float] | None: ...
    @property
    def mixture(self) -> Mixture | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> BatchConfig: ...


def sampling_weights(stage: Sampled, tokens: Artifact) -> dict[str, float] | None:
    """The stage's own weights, or what the sources ask for, under its mixture;
    none for a share in proportion to tokens.

    Raises:
        ConfigError: the mixture names no such source, or its caps leave too little text.
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
    """What the sources ask for; none where no source asks."""
    sources = tokens.manifest.config.get("corpus", {}).get("sources", {})
    weights = {name: source["weight"] for name, source in sources.items() if source.get("weight")}
    return weights if weights and len(weights) == len(sources) else None
