"""All that is known of one of transformers' model families, as one value; `families` holds a file for each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.tensor_rules import Read, Rule, decoder_rules

ANY: Final = object()
"""Stands for a trait that a family leaves open."""

PLAIN: Mapping[str, Any] = {
    "activation": "silu",
    "qkv_bias": False,
    "qk_norm": False,
    "post_norm": False,
    "zero_centered_norm": False,
    "scale_embeddings": False,
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "window_sizes": 0,
    "mixture": False,
    "score_function": None,
}
"""The traits of a plain decoder, such as Llama: fields of a ModelConfig, then three that follow from them."""

SEQUENCE = "ForSequenceClassification"
"""With one label, transformers' form of a model whose head is scalar."""


def no_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a family reads of config.json that has no entries of its own."""
    return {}


def no_padding(model: ModelConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """The padding of a family whose tensors are all a checkpoint's."""
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which models belong to a family, and how transformers writes their config.json and names their tensors."""

    model_type: str
    """transformers' name of it in config.json."""

    title: str
    """Its name in model cards."""

    architecture: str
    """transformers' class for causal language modelling."""

    traits: Mapping[str, Any]
    """Where its models differ from `PLAIN`; `ANY` for what differs among them. No two families share all traits."""

    only: Mapping[str, Any]
    """Entries of config.json of which one value alone is built."""

    config_entries: Callable[[ModelConfig], dict[str, Any]]
    """Its own entries of config.json, beside those that all families have."""

    model_values: Callable[[Mapping[str, Any]], dict[str, Any]] = no_values
    """The way back: values of a ModelConfig from a whole config.json, beside those that the traits give."""

    rules: Callable[[ModelConfig], list[Rule]] = decoder_rules
    """Which tensors of a checkpoint hold the same numbers as which of transformers'."""

    padding: Callable[[ModelConfig, Read], Iterator[tuple[str, Tensor]]] = no_padding
    """Tensors that transformers wants and a checkpoint does not hold; export adds them, import does without."""

    @property
    def sequence_classifier(self) -> str:
        """transformers' class for a model with a scalar head."""
        return self.architecture.replace("ForCausalLM", SEQUENCE)

    @property
    def fixed_values(self) -> dict[str, Any]:
        """Fields of a ModelConfig that are the same in every model of the family."""
        names = {field.name for field in fields(ModelConfig)}
        traits = {**PLAIN, **self.traits}
        return {name: value for name, value in traits.items() if name in names and value is not ANY}

    def mismatches(self, model: ModelConfig) -> dict[str, Any]:
        """The model's traits that the family cannot have."""
        wanted = {**PLAIN, **self.traits}
        return {name: value for name, value in _traits(model).items() if wanted[name] not in (ANY, value)}


def _traits(model: ModelConfig) -> dict[str, Any]:
    counted = {
        "window_sizes": len({window for window in model.attention_windows if window}),
        "mixture": model.moe is not None,
        "score_function": model.moe.score_function if model.moe else None,
    }
    return {name: counted[name] if name in counted else getattr(model, name) for name in PLAIN}
