"""Write safetensors files one tensor at a time, holding no more than that in memory.

The format: https://huggingface.co/docs/safetensors (header length, JSON header, the tensors' bytes in order).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Outline:
    """Name, dtype and shape of a tensor to write."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Outline":
        return cls(name, tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


def write_files(folder: Path, outlines: Sequence[Outline], tensors: Iterator[tuple[str, Tensor]], most: int) -> None:
    """Write `model.safetensors`, or, above `most` bytes, several files and their index.

    Args:
        tensors: the outlined tensors, in the same order.
    """
    files = _split(outlines, most)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        weight_map = {outline.name: name for name, file in zip(names, files, strict=True) for outline in file}
        index = {"metadata": {"total_size": sum(outline.bytes for outline in outlines)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, file in zip(names, files, strict=True):
        _write_file(folder / name, file, tensors)


def _split(outlines: Sequence[Outline], most: int) -> list[list[Outline]]:
    files: list[list[Outline]] = [[]]
    size = 0
    for outline in outlines:
        if files[-1] and size + outline.bytes > most:
            files.append([])
            size = 0
        files[-1].append(outline)
        size += outline.bytes
    return files


def _write_file(path: Path, outlines: Sequence[Outline], tensors: Iterator[tuple[str, Tensor]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for outline in outlines:
        start, end = end, end + outline.bytes
        header[outline.name] = {"dtype": DTYPES[outline.dtype], "shape": outline.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensor data starts at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for outline in outlines:
            name, tensor = next(tensors)
            assert Outline.of(name, tensor) == outline
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())
