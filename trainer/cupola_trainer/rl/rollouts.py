"""A rollout: prompts with sampled and scored responses, as arrays held in full by every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from cupola_platform.durable import replacing
from cupola_platform.errors import CorruptArtifactError
from cupola_trainer.generation.batch import Completion


@dataclass
class Rollout:
    """The responses of one rollout, grouped by prompt.

    Arrays are [rows, s]: column j belongs to token j + 1 of prompt and response, like the labels of a batch.
    """

    tokens: np.ndarray
    """[rows, s + 1], prompt and response, padded with 0."""
    mask: np.ndarray
    """[rows, s], true at response tokens."""
    finished: np.ndarray
    """[rows], false if a response was truncated."""
    sampling_logps: np.ndarray
    """[rows, s], log-probabilities of response tokens reported by the sampling engine; 0 elsewhere."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays added later: "rewards" [rows], "logps" [rows, s] and others."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics to report."""

    @classmethod
    def of(cls, prompts: Sequence[list[int]], completions: Sequence[Completion], sequence_length: int) -> "Rollout":
        """
        Args:
            sequence_length: s, the maximum tokens of a prompt with its response.
        """
        rows = len(prompts)
        tokens = np.zeros((rows, sequence_length + 1), dtype=np.int64)
        mask = np.zeros((rows, sequence_length), dtype=np.bool_)
        logps = np.zeros((rows, sequence_length), dtype=np.float32)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            end = len(prompt) + len(completion.tokens)
            tokens[row, :end] = [*prompt, *completion.tokens]
            response = slice(len(prompt) - 1, end - 1)
            mask[row, response] = True
            logps[row, response] = completion.logprobs
        finished = np.array([completion.finished for completion in completions])
        return cls(tokens, mask, finished, logps)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each response [rows]."""
        lengths: np.ndarray = self.mask.sum(axis=1)
        return lengths

    @cached_property
    def ends(self) -> np.ndarray:
        """Index of each row's last token [rows]."""
        ends: np.ndarray = self.mask.shape[1] - self.mask[:, ::-1].argmax(axis=1)
        return ends

    def followed_by(self, other: "Rollout") -> "Rollout":
        """The rows of both, without metrics."""
        fields: dict[str, Any] = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in FIELDS}
        arrays = {name: np.concatenate([array, other.arrays[name]]) for name, array in self.arrays.items()}
        return Rollout(**fields, arrays=arrays)

    def rows(self, rows: np.ndarray) -> "Rollout":
        """Only the given rows, without metrics."""
        fields: dict[str, Any] = {name: getattr(self, name)[rows] for name in FIELDS}
        return Rollout(**fields, arrays={name: array[rows] for name, array in self.arrays.items()})

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """tokens, labels, position_ids, loss_mask [b, s] of the given rows."""
        tokens = torch.from_numpy(self.tokens[rows])
        length = tokens.size(1) - 1
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "position_ids": torch.arange(length).expand(len(rows), -1).contiguous(),
            "loss_mask": torch.from_numpy(self.mask[rows].astype(np.float32)),
        }

    def save(self, path: Path) -> None:
        """Write the file atomically, synced to disk."""
        fields = {name: getattr(self, name) for name in FIELDS}
        arrays = {f"array.{name}": array for name, array in self.arrays.items()}
        metrics = {f"metric.{name}": np.array(value) for name, value in self.metrics.items()}
        with replacing(path) as file:
            np.savez(file, **fields, **arrays, **metrics)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Rollout":
        """
        Raises:
            CorruptArtifactError: the file is missing or corrupt.
        """
        try:
            with np.load(path) as stored:
                kept: Mapping[str, Any] = dict(stored)
            arrays = {name.removeprefix("array."): array for name, array in kept.items() if name.startswith("array.")}
            metrics = {name.removeprefix("metric."): float(kept[name]) for name in kept if name.startswith("metric.")}
            return cls(**{name: kept[name] for name in FIELDS}, arrays=arrays, metrics=metrics)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise CorruptArtifactError(
                f"{path} cannot be read ({error}). This job was training on that rollout. Restore the file, or "
                "start a new job from the newest checkpoint's weights."
            ) from error


FIELDS = ("tokens", "mask", "finished", "sampling_logps")
