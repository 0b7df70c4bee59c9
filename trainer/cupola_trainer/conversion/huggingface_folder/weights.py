"""The weights of a transformers folder: checking them, and reading them one tensor at a time."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.huggingface_folder.files import ModelFolder, shown
from cupola_trainer.conversion.huggingface_folder.safetensors_writer import DTYPES
from cupola_trainer.conversion.mapping import held_tensors, tied_names, to_huggingface

AGAIN = "Correct config.json, or copy the folder again."
"""Next move if config.json and weights do not match."""

DERIVED = ".rotary_emb.inv_freq"
"""Older Llama files contain RoPE's frequencies, which follow from config.json."""


PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def open_weights(folder: ModelFolder, stack: ExitStack) -> dict[str, Any]:
    """Map every tensor's name to the open safetensors file that the index assigns it to.

    Raises:
        NotFoundError: a file is missing.
        ConfigError: a file leads outside the folder, is pickled or corrupt, or does not match the index.
    """
    if folder.file(INDEX) is None:
        file = stack.enter_context(_open(folder, SINGLE))
        return dict.fromkeys(file.keys(), file)
    assigned = _weight_map(folder)
    files = {name: stack.enter_context(_open(folder, name)) for name in sorted(set(assigned.values()))}
    if SINGLE not in files and folder.file(SINGLE) is not None:
        raise ConfigError(f"{folder.path} holds {SINGLE}, which {INDEX} does not list. Remove the outdated one.")
    for name, file in files.items():
        held, due = set(file.keys()), {tensor for tensor, where in assigned.items() if where == name}
        for tensor in sorted(held ^ due):
            if tensor in due:
                wrong = f"lacks {shown(tensor)}, which {INDEX} assigns to it"
            elif tensor in assigned:
                wrong = f"holds a second {shown(tensor)}: {INDEX} assigns it to {shown(assigned[tensor])}"
            elif tensor.endswith(DERIVED):
                continue
            else:
                wrong = f"holds {shown(tensor)}, which {INDEX} does not list"
            raise ConfigError(f"{shown(folder.path / name)} {wrong}. Save the model again.")
    return {tensor: files[name] for tensor, name in assigned.items()}


def _weight_map(folder: ModelFolder) -> dict[str, str]:
    names = folder.json(INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(
            f"{folder.path / INDEX} has no weight_map from tensor names to file names. Save the model again."
        )
    return names


def _open(folder: ModelFolder, name: str) -> Any:
    path = folder.file(name)
    if path is None:
        pickled = next((path for pattern in PICKLED for path in sorted(folder.path.glob(pattern))), None)
        if pickled:
            raise ConfigError(
                f"{pickled} is pickled: loading it could run arbitrary code. Save the model as safetensors first."
            )
        raise NotFoundError(f"{shown(folder.path / name)} is missing. Give a folder with the model's safetensors.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ConfigError(f"{shown(folder.path / name)} is not a safetensors file: {error}. Copy it again.") from error


class Weights:
    """Tensors by name, over all files of a folder.

    Args:
        files: tensor name to the open safetensors file that holds it.
    """

    def __init__(self, folder: Path, files: Mapping[str, Any]) -> None:
        self.folder, self.files = folder, files

    def dtype(self) -> torch.dtype:
        """The dtype that represents all tensors exactly.

        Raises:
            ConfigError: a tensor is not 16- or 32-bit floating point; names it.
        """
        by_name = {name: dtype for dtype, name in DTYPES.items()}
        kinds = set()
        for name, file in self.files.items():
            kind = file.get_slice(name).get_dtype()
            if kind not in by_name:
                raise ConfigError(
                    f"{self.folder}: {shown(name)} has dtype {kind}. Only {', '.join(by_name)} can be imported. "
                    "Save the model in one of these first."
                )
            kinds.add(by_name[kind])
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def check_size(self, model: ModelConfig) -> None:
        """Refuse a model far larger than these weights, before it is built.

        Raises:
            ConfigError: gives both sizes.
        """
        held = sum(math.prod(file.get_slice(name).get_shape()) for name, file in self.files.items())
        if (called_for := parameter_count(model)) > 2 * held:
            raise ConfigError(
                f"{self.folder}: its config.json describes {called_for:,} parameters, its files hold {held:,}. {AGAIN}"
            )

    def check(self, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse weights that do not match the model exactly.

        Args:
            shapes: shapes of the model's whole tensors, by checkpoint key.

        Raises:
            ConfigError: a tensor is missing, unknown, or of another shape; names it.
        """

        def outline(key: str, index: tuple[int, ...]) -> Tensor:
            return torch.empty(shapes[key][len(index) :], device="meta")

        tied = tied_names(model)
        needed = {name for name, _ in held_tensors(model, outline)}
        known = set(tied or ())
        for name, tensor in to_huggingface(model, outline):
            known.add(name)
            if name not in self.files:
                if name not in needed:
                    continue
                raise ConfigError(f"{self.folder} lacks the tensor {name}, which its config.json requires. {AGAIN}")
            shape = tuple(self.files[name].get_slice(name).get_shape())
            if shape != tuple(tensor.shape):
                raise ConfigError(
                    f"{self.folder}: {name} has shape {shape}; its config.json requires {tuple(tensor.shape)}. {AGAIN}"
                )
        unknown = sorted(name for name in set(self.files) - known if not name.endswith(DERIVED))
        if unknown:
            more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
            raise ConfigError(
                f"{self.folder}: its config.json has no place for the tensor {shown(unknown[0])}{more}. {AGAIN}"
            )
        if tied and tied[1] in self.files and not torch.equal(self.read(tied[1]), self.read(tied[0])):
            raise ConfigError(
                f"{self.folder}: {tied[1]} differs from {tied[0]}, but config.json ties them. "
                "Set tie_word_embeddings to false in config.json."
            )

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ConfigError: it holds non-finite values.
        """
        tensor: Tensor = self.files[name].get_tensor(name)
        if not torch.isfinite(tensor).all():
            raise ConfigError(
                f"{self.folder}: {name} holds values that are not finite (NaN or infinity). "
                "The model is broken: use an earlier checkpoint."
            )
        return tensor
