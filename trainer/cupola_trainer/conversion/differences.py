"""Distances between the weights of two checkpoints, per tensor, by Hugging Face names."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cupola_trainer.checkpoint import read_model
from cupola_trainer.config import ModelConfig
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.mapping import rules
from cupola_trainer.conversion.tensor_rules import Rule


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints."""

    model: ModelConfig
    stored: StoredTensors

    @classmethod
    def open(cls, checkpoint: Path) -> "Side":
        return cls(read_model(checkpoint), StoredTensors(checkpoint))

    def names(self) -> list[str]:
        return [name for rule in rules(self.model) for _, names in rule.places(self.model) for name in names]

    def parts(self, rule: Rule, index: tuple[int, ...]) -> list[Tensor]:
        return [part.double() for part in rule.layout.split(self.stored.read(rule.key, index))]


def compare_weights(a: Path, b: Path) -> dict[str, Any]:
    """Compare the tensors that both checkpoints have with the same shape. Returns plain JSON.

    Holds one tensor of one layer of each at a time. A row has `name`, `shape`, `norm` (Frobenius, of a's), `distance`
    (of b's from a's), `cosine` (similarity; None if either is zero) and `changed` (share of elements).

    Args:
        a, b: checkpoint folders of any layout; tensors that only one has, or that differ in shape, are listed.

    Raises:
        CorruptArtifactError: a file does not match its digest.
    """
    one, other = Side.open(a), Side.open(b)
    rows = list(_rows(one, other))
    common = {row["name"] for row in rows}
    return {
        "tensors": rows,
        "only_a": [name for name in one.names() if name not in common],
        "only_b": [name for name in other.names() if name not in common],
    }


def _rows(one: Side, other: Side) -> Iterator[dict[str, Any]]:
    theirs = {rule.key: rule for rule in rules(other.model)}
    for rule in rules(one.model):
        same = theirs.get(rule.key)
        for index, names in rule.places(one.model):
            if same is None or same.names != rule.names or not _exists(other, rule.key, index):
                continue
            for name, x, y in zip(names, one.parts(rule, index), other.parts(same, index), strict=True):
                if x.shape == y.shape:
                    yield _row(name, x, y)


def _exists(side: Side, key: str, index: tuple[int, ...]) -> bool:
    """Whether the layer (and expert) exists."""
    shape = side.stored.outline(key).shape
    return all(i < size for i, size in zip(index, shape, strict=False))


def _row(name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    norms = x.norm().item() * y.norm().item()
    return {
        "name": name,
        "shape": list(x.shape),
        "norm": x.norm().item(),
        "distance": (y - x).norm().item(),
        "cosine": max(-1.0, min(1.0, (x * y).sum().item() / norms)) if norms and math.isfinite(norms) else None,
        "changed": (x != y).double().mean().item(),
    }
