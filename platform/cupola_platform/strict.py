"""How every configuration is read: an unknown key is refused, a number is finite, a field's docstring is its
description."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

FINGERPRINTED = False  # reads settings, whose values a fingerprint has

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Strict(BaseModel):
    """Settings to inherit from, so that a recipe's stage and the trainer's job share fields, defaults and rules."""

    model_config = ConfigDict(**STRICT, frozen=True)

    def but(self, **changes: Any) -> Self:
        """A copy with other values, checked anew. Raises pydantic's ValidationError."""
        return type(self)(**{**dict(self), **changes})
