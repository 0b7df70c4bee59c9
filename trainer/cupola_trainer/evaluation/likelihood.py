"""Held-out bits per byte: the bits a model needs per byte of unseen text.

bits per byte = sum of -log2 p(token) over all tokens / UTF-8 bytes of the text. It does not depend on how the tokenizer
splits the text, so models with different vocabularies can be compared.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.data.pretraining.shards import Stream
from cupola_trainer.forward.outputs import token_losses

END_OF_DOCUMENT = "<|endoftext|>"
LOGITS_PER_PASS = 2**25
"""Maximum logits per forward pass (tokens including padding, times the vocabulary size): 128 MiB in fp32."""

UNIGRAM_TOKENS = 1 << 30
"""Maximum tokens that the unigram model counts: ten seconds, and no more changes its figure."""
TOKENS_PER_READ = 1 << 22

Tokens = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Heldout:
    """Held-out documents, each ending in <|endoftext|>; the last of a source may be truncated to the token budget."""

    documents: list[Tokens]
    bytes: int
    """UTF-8 bytes of their tokens; control tokens count as 0."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    def stream(self) -> Tokens:
        """The documents, concatenated."""
        return np.concatenate(self.documents)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A model's loss on held-out text."""

    bits_per_byte: float
    loss: float
    """Mean -ln p over tokens."""
    tokens: int


def read_heldout(folder: Path, tokenizer: Any, max_tokens: int) -> Heldout:
    """The first held-out documents of every source of a `tokens` artifact, with their size in bytes.

    Raises:
        ConfigError: the artifact holds no held-out text.
    """
    documents = heldout_documents(folder, max_tokens)
    sizes = byte_lengths(tokenizer)
    return Heldout(documents, sum(int(sizes[document].sum()) for document in documents))


def heldout_documents(folder: Path, max_tokens: int) -> list[Tokens]:
    """The first held-out documents of every source of a `tokens` artifact, in proportion to its share of the tokens.

    Raises:
        ConfigError: the artifact holds no held-out text.
    """
    sources = json.loads((folder / "index.json").read_bytes())["sources"]
    total = sum(source["heldout"]["tokens"] for source in sources.values())
    if not total:
        raise ConfigError(f"{folder} holds no held-out tokens. Raise the held-out fraction of its prepare stage.")
    documents: list[Tokens] = []
    for name, source in sources.items():
        budget = math.ceil(min(max_tokens, total) * source["heldout"]["tokens"] / total)
        if budget:
            documents += _first(Stream(folder, source["heldout"], "heldout", name), budget)
    return documents


def _first(stream: Stream, budget: int) -> list[Tokens]:
    """Documents from the beginning of a stream; the last is truncated to the budget."""
    documents: list[Tokens] = []
    position, end = 0, min(budget, len(stream))
    stream.fetch([(0, end)])
    for length in stream.lengths():
        if position >= end:
            break
        documents.append(stream.read(position, min(length, end - position)))
        position += length
    return documents


def byte_lengths(tokenizer: Any) -> Tokens:
    """UTF-8 bytes of every token in a byte-level vocabulary, where each character of a token represents one byte."""
    sizes = [len(token or "") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    for token, index in tokenizer.get_added_vocab().items():  # plain text
        sizes[index] = 0 if index in tokenizer.all_special_ids else len(token.encode())
    return np.array(sizes)


def unigram_bits_per_byte(folder: Path, heldout: Heldout, vocabulary: int) -> float:
    """Bits per byte of a unigram model of the training shards, with add-one smoothing. Of more than `UNIGRAM_TOKENS`,
    it counts the first ones of each source."""
    counts = np.ones(vocabulary)
    sources = json.loads((folder / "index.json").read_bytes())["sources"]
    share = min(1.0, UNIGRAM_TOKENS / max(1, sum(source["train"]["tokens"] for source in sources.values())))
    for name, source in sources.items():
        if not source["train"]["tokens"]:
            continue
        stream = Stream(folder, source["train"], "train", name)
        end = math.ceil(len(stream) * share)
        for first in range(0, end, TOKENS_PER_READ):
            span = first, min(TOKENS_PER_READ, end - first)
            stream.fetch([span])
            counts += np.bincount(stream.read(*span), minlength=vocabulary)
    log2 = np.log2(counts) - math.log2(counts.sum())
    return -sum(float(log2[document].sum()) for document in heldout.documents) / heldout.bytes


@torch.no_grad()  # type: ignore[untyped-decorator]
def likelihood(
    chunks: Sequence[Any], heldout: Heldout, *, window: int, end: int, progress: Callable[[int], None] | None = None
) -> Likelihood:
    """A model's loss on all tokens of the documents. Called on every rank; returns the same on all, in any layout.

    Documents are split into non-overlapping windows of `window` tokens. A token's context is its window up to there,
    plus the one token before the window: <|endoftext|> at the start of a document, as in training.

    Args:
        chunks: the model in evaluation mode, without sequence parallelism.
        end: id of <|endoftext|>.
        progress: called with the number of tokens done so far.
    """
    batches = _batches(_windows(heldout.documents, window, end), LOGITS_PER_PASS // chunks[0].vocab_size)
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    nats = torch.zeros((), dtype=torch.float64, device=runtime.device())
    done = 0
    for start in range(0, len(batches), ranks):
        # a rank without a batch repeats the last one, uncounted, because other ranks may need its experts
        tokens, labels, counted = batches[min(start + rank, len(batches) - 1)]
        losses = _losses(chunks, tokens, labels)
        if start + rank < len(batches):
            nats += (losses.double() * counted.to(losses.device)).sum()
        done += sum(int(counted.sum()) for _, _, counted in batches[start : start + ranks])
        if progress:
            progress(done)
    dist.all_reduce(nats, group=parallel_state.get_data_parallel_group())
    total = float(nats)
    return Likelihood(total / math.log(2) / heldout.bytes, total / heldout.tokens, heldout.tokens)


def _losses(chunks: Sequence[Any], tokens: Tensor, labels: Tensor) -> Tensor:
    """-log p(labels) [b, s] on every rank. Rows are padded on the right to divide over context-parallel ranks."""
    width = tokens.size(1)
    shares = 2 * parallel_state.get_context_parallel_world_size()
    missing = -width % shares if shares > 2 else 0
    tokens, labels = F.pad(tokens, (0, missing)), F.pad(labels, (0, missing))
    positions = torch.arange(width + missing).expand_as(tokens)
    mask = torch.ones(tokens.shape)
    batch = {"tokens": tokens, "labels": labels, "position_ids": positions, "loss_mask": mask}
    return token_losses(list(chunks), batch)[:, :width]


def _windows(documents: Sequence[Tokens], window: int, end: int) -> list[tuple[Tokens, Tokens]]:
    """(inputs, labels) of at most `window` tokens each."""
    pairs = []
    for document in documents:
        inputs = np.concatenate([[end], document[:-1]])
        pairs += [(inputs[i : i + window], document[i : i + window]) for i in range(0, len(document), window)]
    return pairs


def _batches(windows: list[tuple[Tokens, Tokens]], tokens_per_pass: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches of windows of similar length: tokens, labels and whether they count, [b, s] each, right-padded."""
    windows = sorted(windows, key=lambda pair: -len(pair[0]))
    batches = []
    while windows:
        width = len(windows[0][0])
        count = max(1, tokens_per_pass // width)
        batch, windows = windows[:count], windows[count:]
        tokens, labels = torch.zeros(2, len(batch), width, dtype=torch.long)
        counted = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, (inputs, targets) in enumerate(batch):
            tokens[row, : len(inputs)] = torch.from_numpy(inputs)
            labels[row, : len(targets)] = torch.from_numpy(targets)
            counted[row, : len(targets)] = True
        batches.append((tokens, labels, counted))
    return batches
