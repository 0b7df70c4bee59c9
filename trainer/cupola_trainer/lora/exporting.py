"""Export adapters to PEFT: adapter_config.json and adapter_model.safetensors.

Here Q, K and V share one A, as do gate and up; for PEFT, A is copied and B is split. transformers keeps the routed
experts of a layer in one tensor, for which PEFT has `target_parameters`: A [experts * r, in], B [out, r * experts].
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint import read_model
from cupola_trainer.config import LoraConfig, ModelConfig
from cupola_trainer.conversion import families
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.huggingface_folder.safetensors_writer import Outline, write_files
from cupola_trainer.conversion.mapping import rules
from cupola_trainer.lora.attaching import read_adapter

EXPERTS = "decoder.layers.mlp.experts.experts."
FUSED = {"linear_fc1": ("gate_up_proj", "base_layer."), "linear_fc2": ("down_proj", "")}
"""Routed experts' parameter in transformers, and the prefix of its adapters in PEFT, which nests the wrappers."""


def export_adapter(adapter: Path, to: Path, *, base_model: str = "") -> Path:
    """Write a folder for `PeftModel.from_pretrained(model, folder)`, where `model` is the exported base.

    Args:
        to: a folder that does not exist or is empty.
        base_model: the base in the adapter's configuration: a folder or a name on the hub.

    Raises:
        ConfigError: `to` is not empty, the checkpoint is not an adapter, or transformers does not support the model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Give a new one.")
    lora, _ = read_adapter(adapter)
    model, stored = read_model(adapter), StoredTensors(adapter)
    families.of(model)  # refuses models without a class in transformers
    tensors = dict(_tensors(model, stored))
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        outlines = [Outline.of(name, tensor) for name, tensor in tensors.items()]
        write_files(partial, outlines, iter(tensors.items()), most=1 << 62)
        (partial / "model.safetensors").rename(partial / "adapter_model.safetensors")
        config = _config(lora, base_model) | _targets(model, stored)
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _config(lora: LoraConfig, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _targets(model: ModelConfig, stored: StoredTensors) -> dict[str, Any]:
    """PEFT's target modules and parameters. Full names, because shared and routed experts have the same last part."""
    modules = [
        name.removesuffix(".weight")
        for rule in rules(model)
        if _adapted(rule.key, stored) and not rule.key.startswith(EXPERTS)
        for _, names in rule.places(model)
        for name in names
    ]
    config: dict[str, Any] = {"target_modules": sorted(modules)}
    if _adapted(f"{EXPERTS}linear_fc1.weight", stored):
        config["target_parameters"] = [f"mlp.experts.{name}" for name, _ in FUSED.values()]
    return config


def _tensors(model: ModelConfig, stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    for rule in rules(model):
        if not _adapted(rule.key, stored):
            continue
        prefix = rule.key.removesuffix("weight")
        if rule.key.startswith(EXPERTS):
            yield from _experts(model, stored, prefix)
            continue
        for index, names in rule.places(model):
            a, b = (stored.read(f"{prefix}{name}", index) for name in ("lora_a", "lora_b"))
            for name, part in zip(names, rule.layout.split(b), strict=True):
                place = f"base_model.model.{name.removesuffix('.weight')}"
                yield f"{place}.lora_A.weight", a.clone()
                yield f"{place}.lora_B.weight", part.contiguous()


def _experts(model: ModelConfig, stored: StoredTensors, prefix: str) -> Iterator[tuple[str, Tensor]]:
    assert model.moe is not None
    _, inner = FUSED[prefix.removeprefix(EXPERTS).removesuffix(".")]
    for layer in range(model.num_layers):
        a, b = (
            torch.stack([stored.read(f"{prefix}{name}", (layer, expert)) for expert in range(model.moe.num_experts)])
            for name in ("lora_a", "lora_b")
        )  # [experts, r, in], [experts, out, r]
        place = f"base_model.model.model.layers.{layer}.mlp.experts.{inner}"
        yield f"{place}lora_A.weight", a.flatten(0, 1)
        yield f"{place}lora_B.weight", b.permute(1, 2, 0).flatten(1).contiguous()


def _adapted(key: str, stored: StoredTensors) -> bool:
    return key.endswith(".weight") and key.removesuffix("weight") + "lora_a" in stored
