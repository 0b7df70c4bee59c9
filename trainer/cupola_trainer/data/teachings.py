"""A teacher's stored top-k tokens at every position, looked up by the sample's tokens.

index.json                          {"temperature", "k", "samples": {digest: [part, row]}}
tokens-PART.npy  logprobs-PART.npy  [rows, s, k], int32 and float32; one part per data-parallel rank
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from cupola_platform.errors import ConfigError


def digest(tokens: np.ndarray) -> str:
    """A key for a row of token ids [s]."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, dtype=np.int64).tobytes(), digest_size=16).hexdigest()


class Teachings:
    """A `teacher` artifact, open."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ConfigError: the folder is not a `teacher` artifact.
        """
        self.folder = folder
        try:
            index = json.loads((folder / "index.json").read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{folder} holds no index.json. Give the folder of a `teacher` artifact.") from None
        self.temperature, self.places = float(index["temperature"]), index["samples"]
        parts = range(len(list(folder.glob("tokens-*.npy"))))
        self._tokens, self._logprobs = (
            [np.load(folder / f"{what}-{part}.npy", mmap_mode="r") for part in parts] for what in ("tokens", "logprobs")
        )

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int64) and log-probabilities [b, s, k] for rows of token ids [b, s].

        Raises:
            ConfigError: a row is not stored.
        """
        try:
            places = [self.places[digest(row)] for row in rows]
        except KeyError:
            raise ConfigError(
                f"{self.folder} does not cover a sample: it was written for another seed, sequence_length, number of "
                "steps or text. Write it again for this job."
            ) from None
        tokens = np.stack([self._tokens[part][row] for part, row in places]).astype(np.int64)
        return tokens, np.stack([self._logprobs[part][row] for part, row in places])
