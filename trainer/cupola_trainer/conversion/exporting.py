"""Export a checkpoint as a folder that plain transformers loads."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint import read_model, read_training
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.config_json import to_config
from cupola_trainer.conversion.huggingface_folder.model_card import model_card
from cupola_trainer.conversion.huggingface_folder.safetensors_writer import Outline, write_files
from cupola_trainer.conversion.mapping import to_huggingface
from cupola_trainer.data.tokenizer_folders import stop_ids

SHARD_BYTES = 5 * 10**9
"""Maximum bytes per weights file."""


def export(checkpoint: Path, to: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a checkpoint of any layout as a transformers folder: configuration, weights, model card, and any tokenizer.

    Runs in one process, and holds one tensor of one layer in memory. The folder appears complete or not at all.

    Args:
        checkpoint: a checkpoint artifact's folder.
        to: a folder that does not exist yet, or is empty.

    Raises:
        ConfigError: `to` holds files, or transformers has no such model.
        CorruptArtifactError: a file does not match its digest; names the file. Nothing is unpickled.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Give a new one.")
    stored, model = StoredTensors(checkpoint), read_model(checkpoint)
    outlines = [Outline.of(name, tensor) for name, tensor in to_huggingface(model, stored.outline)]
    tokenizer = None
    if (checkpoint / "tokenizer").is_dir():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    training = read_training(checkpoint)
    ids = training.get("control_tokens") or _ids(tokenizer)  # for an imported model, the original ones
    stops = ids["eos"] if "control_tokens" in training or not tokenizer else stop_ids(tokenizer)
    described = training.get("config_tokens", ids)
    config = to_config(model, dtype=str(outlines[0].dtype).removeprefix("torch."), **described)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_json(partial / "config.json", config)
        if tokenizer or stops is not None or training.keys() & {"sampling", "config_tokens"}:
            generation = {"bos_token_id": ids["bos"], "eos_token_id": stops, "pad_token_id": ids["pad"]}
            _write_json(partial / "generation_config.json", training.get("sampling", {}) | generation)
        if tokenizer:
            shutil.copytree(checkpoint / "tokenizer", partial, dirs_exist_ok=True)
        write_files(partial, outlines, to_huggingface(model, stored.read), shard_bytes)
        text = model_card(artifacts.read(checkpoint), model, training, tokenizer is not None)
        (partial / "README.md").write_text(text, encoding="utf-8")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _ids(tokenizer: Any) -> dict[str, Any]:
    return {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
