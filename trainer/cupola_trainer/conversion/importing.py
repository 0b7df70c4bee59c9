"""A transformers folder, read into a checkpoint. Weights come from safetensors only: nothing is unpickled."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import ModelConfig, ParallelConfig
from cupola_trainer.conversion.families import from_config
from cupola_trainer.conversion.filling import fill, whole_shapes
from cupola_trainer.conversion.mapping import from_huggingface, to_huggingface

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip


def import_(folder: Path, to: Path) -> Artifact:
    """Make a checkpoint of a transformers folder's model, with its tokenizer.

    Runs in one process; the checkpoint can be loaded in any layout.

    Raises:
        NotFoundError: no config.json, tokenizer or weights in the folder.
        ConfigError: an architecture that we do not build, pickled weights, or tensors that are unknown, missing or of
            another shape; names them.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Name a new one.")
    model = from_config(_read_json(folder, "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise NotFoundError(f"{folder} holds no tokenizer.json. Save its fast tokenizer there first.")
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        runtime.start(ParallelConfig(), seed=0)
        try:
            chunks = models.build(model, ParallelConfig())
            _check(folder, model, files, whole_shapes(chunks))
            fill(chunks, lambda key: from_huggingface(model, key, lambda name: files[name].get_tensor(name)))
            return _save(folder, to, chunks, model)
        finally:
            runtime.stop()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{folder} holds no {name}. Give a folder that transformers' save_pretrained wrote."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{folder / name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{folder / name} holds no JSON object.")
    return value


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Every tensor's name, with the open safetensors file that holds it."""
    if (folder / "model.safetensors.index.json").is_file():
        paths = sorted(
            {
                folder / name
                for name in _read_json(folder, "model.safetensors.index.json").get("weight_map", {}).values()
            }
        )
    else:
        paths = [folder / "model.safetensors"]
    if not all(path.is_file() for path in paths):
        missing = next(path for path in paths if not path.is_file())
        pickled = next((path for pattern in PICKLED for path in sorted(folder.glob(pattern))), None)
        if pickled:
            raise ConfigError(
                f"{pickled} is pickled: loading it would run code from it. Save the model as safetensors first."
            )
        raise NotFoundError(f"{missing} is missing. Give a folder with the model's safetensors.")
    files: dict[str, Any] = {}
    for path in paths:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ConfigError(f"{path} is not a safetensors file: {error}.") from error
        files |= dict.fromkeys(file.keys(), file)
    return files


def _check(folder: Path, model: ModelConfig, files: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly this model's."""
    expected = dict(to_huggingface(model, lambda key: torch.empty(shapes[key], device="meta")))
    for name, tensor in expected.items():
        if name not in files:
            raise ConfigError(f"{folder} lacks the tensor {name}, which its config.json calls for.")
        shape = tuple(files[name].get_slice(name).get_shape())
        if shape != tuple(tensor.shape):
            raise ConfigError(f"{folder}: {name} has shape {shape}; its config.json calls for {tuple(tensor.shape)}.")
    tied = {"lm_head.weight"} if model.tie_embeddings else set()
    unknown = sorted(set(files) - set(expected) - tied)
    if unknown:
        raise ConfigError(f"{folder} holds {len(unknown)} tensors that its config.json does not know: {unknown[0]}.")


def _save(folder: Path, to: Path, chunks: list[torch.nn.Module], model: ModelConfig) -> Artifact:
    with TemporaryDirectory() as tokenizer:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, tokenizer)
        return checkpoint.save(
            to,
            chunks,
            model=model,
            parallel=ParallelConfig(),
            step=0,
            consumed_samples=0,
            seed=0,
            objective="import",
            tokenizer=Path(tokenizer),
        )
