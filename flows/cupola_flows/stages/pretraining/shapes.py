"""A new model's shape in a recipe: its values, or a published model's by name, with changes."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from cupola_platform.nearest import did_you_mean
from cupola_trainer.config import ModelConfig
from cupola_trainer.config.model.presets import PRESETS

SAYS = (
    "A published model's name (cupola presets), for all values that are not given beside it; its vocabulary is the "
    "tokenizer's."
)


class _ByName:
    """Tells the JSON schema of `preset`, so that editors and hints for misspelt keys know it."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        schema["properties"]["preset"] = {"type": "string", "enum": list(PRESETS), "description": SAYS}
        if required := schema.pop("required", None):
            schema["anyOf"] = [{"required": ["preset"]}, {"required": required}]
        return reference


def _from_preset(given: Any) -> Any:
    """The values of the preset that is named, under those that are given.

    A new model reads the recipe's own tokenizer, so that `vocab_size` is left open where it is not given.
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
"""`model` of a stage that begins with new weights."""
