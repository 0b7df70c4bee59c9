"""Shape of a new model in a recipe: values, or a published model's shape with changes."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from cupola_platform.nearest import did_you_mean
from cupola_trainer.config import ModelConfig
from cupola_trainer.config.model.presets import PRESETS

SAYS = (
    "Name of a published model (see cupola presets) for all values that are not given. The vocabulary size is the "
    "tokenizer's."
)


class _ByName:
    """Adds `preset` to the JSON schema, for editors and for hints about misspelt keys."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        schema["properties"]["preset"] = {"type": "string", "enum": list(PRESETS), "description": SAYS}
        if required := schema.pop("required", None):
            schema["anyOf"] = [{"required": ["preset"]}, {"required": required}]
        return reference


def _from_preset(given: Any) -> Any:
    """The preset's values, overridden by the given ones.

    A new model uses the recipe's tokenizer, so `vocab_size` stays open unless it is given.
    """
    if not isinstance(given, dict) or "preset" not in given:
        return given
    name, changes = given["preset"], {key: value for key, value in given.items() if key != "preset"}
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown.{did_you_mean(str(name), PRESETS)}")
    values = asdict(PRESETS[name]) | {"vocab_size": 0}
    if isinstance(changes.get("moe"), dict) and values["moe"]:
        changes["moe"] = values["moe"] | changes["moe"]
    return values | changes


ModelShape = Annotated[ModelConfig, BeforeValidator(_from_preset), _ByName()]
"""The `model` setting of a stage that starts from random weights."""
