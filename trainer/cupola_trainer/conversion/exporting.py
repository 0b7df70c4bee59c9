"""A checkpoint, written as a folder that transformers loads with no other code."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint import read_model
from cupola_trainer.conversion import card, families
from cupola_trainer.conversion.mapping import to_huggingface
from cupola_trainer.conversion.stored import StoredTensors, read_training
from cupola_trainer.rollout.generation import stop_ids

SHARD_BYTES = 5 * 10**9
"""Weights beyond this go to a further file."""


def export(checkpoint: Path, to: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a checkpoint of any layout as a transformers folder: configuration, weights, tokenizer, model card.

    Runs in one process, and holds one stacked tensor and one file of weights in memory. The folder appears whole or
    not at all.

    Args:
        checkpoint: a checkpoint artifact's folder.
        to: a folder that does not exist yet, or is empty.

    Raises:
        ConfigError: `to` holds files, or transformers has no such model.
        CorruptArtifactError: the checkpoint does not verify; names the file. Nothing in it was unpickled.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Name a new one.")
    stored, model = StoredTensors(checkpoint), read_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    ids = {"bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id}
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        dtype = str(stored["embedding.word_embeddings.weight"].dtype).removeprefix("torch.")
        config = families.to_config(model, dtype=dtype, eos=tokenizer.eos_token_id, **ids)
        _write_json(partial / "config.json", config)
        _write_json(
            partial / "generation_config.json",
            {"bos_token_id": ids["bos"], "eos_token_id": stop_ids(tokenizer), "pad_token_id": ids["pad"]},
        )
        _write_weights(partial, to_huggingface(model, stored.__getitem__), shard_bytes)
        shutil.copytree(checkpoint / "tokenizer", partial, dirs_exist_ok=True)
        text = card.render(artifacts.read(checkpoint), model, read_training(checkpoint))
        (partial / "README.md").write_text(text, encoding="utf-8")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write one safetensors file, or several with an index."""
    files: list[tuple[Path, list[str]]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = 0

    def flush() -> None:
        path = folder / f"{len(files)}.partial"
        save_file({name: tensor.clone() for name, tensor in held.items()}, path, metadata={"format": "pt"})
        files.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and held_bytes + size > shard_bytes:
            flush()
            held_bytes = 0
        held[name] = tensor
        held_bytes, total_bytes = held_bytes + size, total_bytes + size
    flush()
    _name_files(folder, files, total_bytes)


def _name_files(folder: Path, files: list[tuple[Path, list[str]]], total_bytes: int) -> None:
    if len(files) == 1:
        files[0][0].rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )
