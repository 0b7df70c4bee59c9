"""What bends the sampling weights of a pretraining's sources."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Mixture(BaseModel):
    """Applied to the weights by source, first temperature, then caps."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    temperature: float = Field(default=1.0, ge=1)
    """Of languages: a language's share p becomes proportional to p^(1/temperature). 1 leaves it; 3.3 is mT5's."""
    max_epochs: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Times that this stage may read a source, by source; what its weight asks beyond that goes to the others."""
