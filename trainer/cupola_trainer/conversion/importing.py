"""A transformers folder, read into a checkpoint. Weights come from safetensors only: nothing is unpickled."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ELSEWHERE, ConfigError, NotFoundError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import SaveFailedError
from cupola_trainer.config import ModelConfig, ParallelConfig
from cupola_trainer.conversion.filling import whole_shapes
from cupola_trainer.conversion.mapping import from_huggingface
from cupola_trainer.conversion.reading import from_config
from cupola_trainer.conversion.weights import Weights
from cupola_trainer.conversion.writing import outline, write

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip

CONTROL = {name: f"{name}_token_id" for name in ("bos", "eos", "pad")}
WRITERS = ("_from_model_config", "transformers_version")
"""Entries of generation_config.json that tell of the program that wrote it."""


def import_(folder: Path, to: Path) -> Artifact:
    """Make a checkpoint of a transformers folder's model, with its tokenizer if there is one, in the weights' precision.

    Runs in one process, and holds the model and one layer of it in memory; the checkpoint can be loaded in any layout.

    Raises:
        NotFoundError: no config.json or weights in the folder.
        ConfigError: an architecture that we do not build, pickled weights, or tensors that are unknown, missing, not
            finite or of another shape; names them. Or `to` cannot be written; nothing is left there.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Name a new one.")
    config = _read_json(folder, "config.json")
    model = from_config(config)
    _check_tokenizer(folder)
    with ExitStack() as stack:
        weights = Weights(folder, _open_weights(folder, stack))
        runtime.start(ParallelConfig(), seed=0)
        try:
            weights.check(model, whole_shapes(outline(model, ParallelConfig())))
            return _write(folder, to, model, weights, _generation(folder, config))
        except SaveFailedError as error:
            raise ConfigError(f"{to}: {error} {ELSEWHERE}") from error
        finally:
            runtime.stop()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFoundError(
            f"{folder} holds no {name}. Give a folder that transformers' save_pretrained wrote."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{folder / name} is not JSON: {error}. Copy it again.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{folder / name} holds no JSON object. Copy it again.")
    return value


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Every tensor's name, with the open safetensors file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(folder, index.name).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ConfigError(f"{index} has no weight_map from each tensor's name to its file's. Save the model again.")
        paths = sorted({folder / name for name in names.values()})
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
            raise ConfigError(f"{path} is not a safetensors file: {error}. Copy it again.") from error
        files |= dict.fromkeys(file.keys(), file)
    return files


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        return
    try:
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{folder}: its tokenizer cannot be read: {reason}. Repair or remove tokenizer.json."
        ) from error


def _generation(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Where transformers begins, ends and pads a text, and how it samples: what generation_config.json says, if there is one.

    transformers then takes nothing of it from config.json, whose own numbers are kept beside where they are others.
    """
    described = _ids(folder / "config.json", config)
    if not (folder / "generation_config.json").is_file():
        return {"control_tokens": described}
    given = _read_json(folder, "generation_config.json")
    kept: dict[str, Any] = {"control_tokens": _ids(folder / "generation_config.json", given)}
    if kept["control_tokens"] != described:
        kept["config_tokens"] = described
    if sampling := {key: value for key, value in given.items() if key not in (*CONTROL.values(), *WRITERS)}:
        kept["sampling"] = sampling
    return kept


def _ids(path: Path, entries: dict[str, Any]) -> dict[str, int | list[int] | None]:
    found = {name: entries.get(key) for name, key in CONTROL.items()}
    for name, value in found.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and each >= 0 for each in ids):
            raise ConfigError(f"{path}: {CONTROL[name]}={value!r} is no token's number. Correct it there.")
    return found


def _write(folder: Path, to: Path, model: ModelConfig, weights: Weights, generation: dict[str, Any]) -> Artifact:
    with TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) if (folder / "tokenizer.json").is_file() else None
        for path in (folder / name for name in TOKENIZER_FILES):
            if tokenizer and path.is_file():
                shutil.copy(path, tokenizer)
        return write(
            to,
            model,
            lambda key, index: from_huggingface(model, key, index, weights.read),
            parallel=ParallelConfig(),
            dtype=weights.dtype(),
            seed=0,
            objective="import",
            tokenizer=tokenizer,
            extra=generation,
        )
