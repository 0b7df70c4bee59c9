"""Bits per byte of single texts under a checkpoint: `python -m cupola_trainer surprise CHECKPOINT MAX_BYTES`.

Reads one JSON list of texts per line and writes the list of their bits per byte for each line, until the input ends.
Only the beginning of a text counts: `MAX_BYTES` bytes, and at most as many tokens as the model has positions.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.evaluation.likelihood import END_OF_DOCUMENT, LOGITS_PER_PASS, byte_lengths
from cupola_trainer.generation.loading import Loaded, load


class Surprise:
    """Measures texts with a loaded checkpoint."""

    def __init__(self, loaded: Loaded, max_bytes: int) -> None:
        self.loaded, self.max_bytes = loaded, max_bytes
        self.end = loaded.tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
        self.sizes = byte_lengths(loaded.tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Bits per byte of each text, 0 if empty. The first token is predicted from <|endoftext|>, as in training."""
        documents = [self._tokens(text) for text in texts]
        bits = [0.0] * len(texts)
        order = sorted((place for place, of in enumerate(documents) if of), key=lambda place: -len(documents[place]))
        while order:
            count = max(1, LOGITS_PER_PASS // (len(documents[order[0]]) * self.loaded.model.vocab_size))
            batch, order = order[:count], order[count:]
            for place, nats in zip(batch, self._nats([documents[place] for place in batch]), strict=True):
                size = int(self.sizes[np.array(documents[place])].sum())
                bits[place] = nats / math.log(2) / max(size, 1)
        return bits

    def _tokens(self, text: str) -> list[int]:
        beginning = text.encode()[: self.max_bytes].decode(errors="ignore")
        ids: list[int] = self.loaded.tokenizer.encode(beginning, add_special_tokens=False)
        return ids[: self.loaded.model.max_position_embeddings]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _nats(self, documents: Sequence[list[int]]) -> list[float]:
        """-log p of each document, in one padded batch: tokens, labels and losses are [b, s]."""
        model = self.loaded.chunks[0]
        device = next(model.parameters()).device
        tokens, labels = torch.zeros(2, len(documents), len(documents[0]), dtype=torch.long)
        counted = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, ids in enumerate(documents):
            tokens[row, : len(ids)] = torch.tensor([self.end, *ids[:-1]])
            labels[row, : len(ids)] = torch.tensor(ids)
            counted[row, : len(ids)] = True
        positions = torch.arange(tokens.size(1), device=device).expand_as(tokens)
        losses = model(tokens.to(device), positions, None, labels=labels.to(device))
        sums: list[float] = (losses.double() * counted.to(device)).sum(dim=1).tolist()
        return sums


def answer_lines(checkpoint: Path, max_bytes: int) -> None:
    """Answer lines of stdin until it ends.

    Raises:
        ConfigError, CorruptArtifactError: the checkpoint cannot be loaded.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep other prints out of the answers
    runtime.start(LayoutConfig(), seed=0)
    surprise = Surprise(load(checkpoint, LayoutConfig()), max_bytes)
    for line in sys.stdin:
        print(json.dumps(surprise(json.loads(line))), file=answers, flush=True)
    runtime.stop()
