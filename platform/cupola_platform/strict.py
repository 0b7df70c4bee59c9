"""Validation shared by all configurations: unknown keys are refused, numbers are finite, and a field's docstring is its
description."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

FINGERPRINTED = False  # reads settings, whose values a fingerprint has

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def like(pattern: str, words: str) -> AfterValidator:
    """A rule for text or a path: the whole of it matches `pattern`. `words` say so to people: `should be WORDS`."""

    def check(value: Any) -> Any:
        if re.fullmatch(pattern, str(value), re.DOTALL) is None:
            raise ValueError(f"should be {words}")
        return value

    return AfterValidator(check)


class Strict(BaseModel):
    """Base of settings that a recipe's stage and the trainer's job share: fields, defaults and rules."""

    model_config = ConfigDict(**STRICT, frozen=True)

    def but(self, **changes: Any) -> Self:
        """A copy with some values changed, validated again. Raises pydantic's ValidationError."""
        return type(self)(**{**dict(self), **changes})


PublicUrl = Annotated[str, like(r"https?://[^\s@?]+", "an http(s) URL without a user, password or query")]
"""A URL in settings, which are stored and shown."""
