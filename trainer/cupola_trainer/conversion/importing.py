"""Import a transformers folder as a checkpoint. Weights are read from safetensors only: nothing is unpickled."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ELSEWHERE, ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import SaveFailedError
from cupola_trainer.config import LayoutConfig
from cupola_trainer.conversion.checkpoint_writer import outline, write
from cupola_trainer.conversion.config_json import from_config
from cupola_trainer.conversion.huggingface_folder.files import ModelFolder
from cupola_trainer.conversion.huggingface_folder.weights import Weights, open_weights
from cupola_trainer.conversion.mapping import from_huggingface
from cupola_trainer.conversion.model_writer import whole_shapes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip

CONTROL = {name: f"{name}_token_id" for name in ("bos", "eos", "pad")}
WRITERS = ("_from_model_config", "transformers_version")
"""Entries of generation_config.json that describe the program that wrote it."""


def import_(folder: Path, to: Path) -> Artifact:
    """Write the model, and tokenizer if any, of a transformers folder as a checkpoint in the weights' precision.

    Runs in one process, and holds the model plus one layer in memory; the checkpoint loads in any layout.

    Raises:
        NotFoundError: the folder has no config.json or weights.
        ConfigError: an unsupported architecture, pickled weights, files outside the folder, or tensors that are
            unknown, missing, duplicated, non-finite or of another shape; names them. Or `to` cannot be written, and
            nothing is left there.
    """
    to = to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder. Give a new one.")
    source = ModelFolder(folder)
    config = source.json("config.json")
    model, generation = from_config(config), _generation(source, config)
    with ExitStack() as stack:
        tokenizer = _tokenizer(source, Path(stack.enter_context(TemporaryDirectory())))
        weights = Weights(folder, open_weights(source, stack))
        weights.check_size(model)
        runtime.start(LayoutConfig(), seed=0)
        try:
            weights.check(model, whole_shapes(outline(model, LayoutConfig())))
            return write(
                to,
                model,
                lambda key, index: from_huggingface(model, key, index, weights.read),
                layout=LayoutConfig(),
                dtype=weights.dtype(),
                seed=0,
                objective="import",
                tokenizer=tokenizer,
                extra=generation,
            )
        except SaveFailedError as error:
            raise ConfigError(f"{to}: {error} {ELSEWHERE}") from error
        finally:
            runtime.stop()


def _tokenizer(folder: ModelFolder, to: Path) -> Path | None:
    """Copy the folder's tokenizer, and check that it loads on its own. None if there is none."""
    if folder.file("tokenizer.json") is None:
        return None
    for name in TOKENIZER_FILES:
        if (path := folder.file(name)) is not None:
            shutil.copyfile(path, to / name)
    try:
        AutoTokenizer.from_pretrained(to, trust_remote_code=False)
    except BaseException as error:  # tokenizers raises bare Exceptions, and its panics are BaseExceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).replace(str(to), str(folder.path)).split())
        raise ConfigError(
            f"{folder.path}: its tokenizer cannot be read: {reason}. Repair or remove tokenizer.json."
        ) from error
    return to


def _generation(folder: ModelFolder, config: dict[str, Any]) -> dict[str, Any]:
    """The bos, eos and pad tokens and transformers' sampling settings, from generation_config.json if present.

    transformers then ignores config.json's tokens; if they differ, they are kept as `config_tokens`.
    """
    described = _ids(folder.path / "config.json", config)
    if folder.file("generation_config.json") is None:
        return {"control_tokens": described}
    given = folder.json("generation_config.json")
    kept: dict[str, Any] = {"control_tokens": _ids(folder.path / "generation_config.json", given)}
    if kept["control_tokens"] != described:
        kept["config_tokens"] = described
    if sampling := {key: value for key, value in given.items() if key not in (*CONTROL.values(), *WRITERS)}:
        kept["sampling"] = sampling
    return kept


def _ids(path: Path, entries: dict[str, Any]) -> dict[str, int | list[int] | None]:
    tokens = {name: entries.get(key) for name, key in CONTROL.items()}
    for name, value in tokens.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and each >= 0 for each in ids):
            raise ConfigError(f"{path}: {CONTROL[name]}={value!r} is not a token id. Correct it.")
    return tokens
