"""The definition of a transformers model family; `families` has one file for each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.tensor_rules import Read, Rule, decoder_rules

ANY: Final = object()
"""A trait that varies within a family."""

PLAIN: Mapping[str, Any] = {
    "activation": "silu",
    "qkv_bias": False,
    "qk_norm": False,
    "joint_qk_norm": False,
    "local_rope_theta": None,
    "pre_norm": True,
    "post_norm": False,
    "zero_centered_norm": False,
    "scale_embeddings": False,
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "window_sizes": 0,
    "windows_in_some_layers": False,
    "mixture": False,
    "score_function": None,
    "norm_topk_prob": None,
    "shared_expert": False,
}
"""The traits of a plain decoder, such as Llama: fields of ModelConfig, then some derived from them."""

SEQUENCE = "ForSequenceClassification"
"""transformers' class suffix for models with a scalar head (one label)."""


def no_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """`model_values` of a family without extra entries in config.json."""
    return {}


def no_padding(model: ModelConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """`padding` of a family whose tensors are all in the checkpoint."""
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Family:
    """The models that belong to a family, their config.json and their tensor names in transformers."""

    model_type: str
    """Its name in config.json."""

    title: str
    """Its name in model cards."""

    architecture: str
    """transformers' class for causal language modeling."""

    classifier: str | None = None
    """transformers' class for a scalar head, if its name does not follow from `architecture`."""

    traits: Mapping[str, Any]
    """Differences from `PLAIN`; `ANY` for traits that vary. If several families fit, `ModelConfig.family` names one."""

    only: Mapping[str, Any]
    """Entries of config.json with a single supported value."""

    config_entries: Callable[[ModelConfig], dict[str, Any]]
    """Its entries of config.json, in addition to those of all families."""

    model_values: Callable[[Mapping[str, Any]], dict[str, Any]] = no_values
    """The reverse: ModelConfig values from a complete config.json, in addition to those set by the traits."""

    rules: Callable[[ModelConfig], list[Rule]] = decoder_rules
    """How checkpoint tensors map to transformers' tensors."""

    padding: Callable[[ModelConfig, Read], Iterator[tuple[str, Tensor]]] = no_padding
    """Tensors that transformers requires but checkpoints do not hold: export adds them, import ignores them."""

    @property
    def sequence_classifier(self) -> str:
        """transformers' class for a model with a scalar head."""
        return self.classifier or self.architecture.replace("ForCausalLM", SEQUENCE)

    @property
    def fixed_values(self) -> dict[str, Any]:
        """ModelConfig fields with the same value in every model of the family."""
        names = {field.name for field in fields(ModelConfig)}
        traits = {**PLAIN, **self.traits}
        return {name: value for name, value in traits.items() if name in names and value is not ANY}

    def mismatches(self, model: ModelConfig) -> dict[str, Any]:
        """The model's traits that the family does not support."""
        wanted = {**PLAIN, **self.traits}
        return {name: value for name, value in _traits(model).items() if wanted[name] not in (ANY, value)}


def _traits(model: ModelConfig) -> dict[str, Any]:
    windows, moe = set(model.attention_windows), model.moe
    counted = {
        "window_sizes": len(windows - {None}),
        "windows_in_some_layers": len(windows) > 1,
        "mixture": moe is not None,
        "score_function": moe.score_function if moe else None,
        "norm_topk_prob": moe.norm_topk_prob if moe else None,
        "shared_expert": bool(moe and moe.shared_expert_ffn_hidden_size),
    }
    return {name: counted[name] if name in counted else getattr(model, name) for name in PLAIN}
