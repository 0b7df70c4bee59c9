"""How every configuration is read: an unknown key is refused, a number is finite, a field's docstring is its
description."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
