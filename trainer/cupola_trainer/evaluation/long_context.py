"""Long-context evaluation: loss by position and needle retrieval, for each method of extending the context."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint
from cupola_trainer.config import LayoutConfig, LongContextConfig
from cupola_trainer.config.model.long_context import method
from cupola_trainer.generation.loading import Loaded, load

CUE, ANSWER = 8, 8
"""Tokens of a needle that are repeated as a cue, and tokens that the model must then predict."""
BINS = 32
"""Points on the curve of loss by position."""
TOKENS_PER_PASS = 16_384

Tokens = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Texts of one length with needles at one depth."""

    length: int
    depth: float | None
    """None: the needle is not in the text, so the answer can only be guessed."""
    texts: Tensor
    """[needles, length]: held-out text containing a needle, then the needle again as cue and answer."""


def measure(
    folder: Path,
    layout: LayoutConfig,
    stream: Tokens,
    config: LongContextConfig,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """`long_context` in results.json for one checkpoint. Called on every rank; returns the same on all, in any layout.

    A needle is `CUE + ANSWER` random tokens from the text's vocabulary, so it can only be continued by retrieving it.
    `recall` is the share of answer tokens predicted correctly with teacher forcing, `exact` the share of needles
    predicted completely, as by greedy generation, and `nll` the mean -ln p of the answer tokens.

    Args:
        stream: held-out tokens, documents concatenated as in training.
        progress: called with each method's name before it is measured.

    Raises:
        ConfigError: there is too little text, or a length exceeds what a method allows.
        CorruptArtifactError: the checkpoint does not verify.
    """
    model = checkpoint.read_model(folder)
    trained, longest = config.trained_length or model.max_position_embeddings, max(config.lengths)
    variants = {name: method(model, name, trained=trained, longest=longest) for name in config.methods}
    rows = _rows(stream, longest)
    cells = list(_cells(stream, config, seed))
    methods: dict[str, Any] = {}
    for name, variant in variants.items():
        progress(name)
        loaded = load(folder, layout, variant)
        methods[name] = {
            **_losses(loaded, rows, trained),
            "needle": [_cell(loaded, cell) for cell in cells],
        }
    return {"trained_length": trained, "longest": longest, "tokens": rows.numel(), "methods": methods}


def _rows(stream: Tokens, longest: int) -> Tensor:
    """Non-overlapping rows of text [rows, longest + 1]."""
    count = len(stream) // (longest + 1)
    if not count:
        raise ConfigError(
            f"The held-out text has {len(stream)} tokens, but length {longest} needs {longest + 1}. "
            "Measure shorter lengths, or prepare more held-out text."
        )
    return torch.from_numpy(stream[: count * (longest + 1)].reshape(count, -1))


def _cells(stream: Tokens, config: LongContextConfig, seed: int) -> Iterator[Cell]:
    words = np.unique(stream)
    for length in config.lengths:
        room = length - 2 * (CUE + ANSWER)
        for depth in (*config.depths, None):
            random = np.random.default_rng([seed, length])  # the same needles and texts at every depth
            texts = []
            for _ in range(config.needles):
                start = int(random.integers(0, len(stream) - room + 1))
                needle, other = random.choice(words, (2, CUE + ANSWER))
                hay, place = stream[start : start + room], round((depth or 0.0) * room)
                hidden = other if depth is None else needle
                texts.append(np.concatenate([hay[:place], hidden, hay[place:], needle]))
            yield Cell(length, depth, torch.from_numpy(np.stack(texts)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def _losses(loaded: Loaded, rows: Tensor, trained: int) -> dict[str, Any]:
    """Mean -ln p in each bin of positions, within the trained length, and past it (None if nothing is)."""
    longest = rows.size(1) - 1
    sums = torch.zeros(longest, dtype=torch.float64)
    for batch, counts in _rank_batches(rows.split(max(1, TOKENS_PER_PASS // longest))):
        batch = batch.to(_device(loaded))
        positions = torch.arange(longest, device=batch.device).expand(len(batch), -1)
        losses = loaded.chunks[0](batch[:, :-1].contiguous(), positions, None, labels=batch[:, 1:].contiguous())
        if counts:
            sums += losses.double().sum(dim=0).cpu()
    by_position = _total(sums, loaded) / len(rows)
    edges = sorted({round(longest * number / BINS) for number in range(BINS + 1)})
    return {
        "loss_by_position": [
            {"from": start, "to": end, "loss": float(by_position[start:end].mean())}
            for start, end in itertools.pairwise(edges)
        ],
        "loss_within": float(by_position[:trained].mean()),
        "loss_past": float(by_position[trained:].mean()) if trained < longest else None,
    }


@torch.no_grad()  # type: ignore[untyped-decorator]
def _cell(loaded: Loaded, cell: Cell) -> dict[str, Any]:
    sums = torch.zeros(3, dtype=torch.float64)
    for texts, counts in _rank_batches(cell.texts.split(max(1, TOKENS_PER_PASS // cell.length))):
        texts = texts.to(_device(loaded))
        logprobs = _last_logprobs(loaded, texts[:, :-1])
        answers = texts[:, -ANSWER:]
        right = logprobs.argmax(dim=-1) == answers
        answer_logprobs = logprobs.gather(-1, answers[..., None])
        if counts:
            parts = [
                right.double().mean(dim=1).sum(),
                right.all(dim=1).sum(),
                -answer_logprobs.double().mean(dim=(1, 2)).sum(),
            ]
            sums += torch.stack([part.double().cpu() for part in parts])
    recall, exact, nll = (_total(sums, loaded) / len(cell.texts)).tolist()
    return {"length": cell.length, "depth": cell.depth, "recall": recall, "exact": exact, "nll": nll}


def _last_logprobs(loaded: Loaded, tokens: Tensor) -> Tensor:
    """Next-token log-probabilities at the last `ANSWER` positions only: [b, s] -> [b, ANSWER, v]."""
    model = loaded.chunks[0]
    positions = torch.arange(tokens.size(1), device=tokens.device).expand(len(tokens), -1)
    hidden = model.decoder(
        hidden_states=model.embedding(input_ids=tokens, position_ids=positions),
        attention_mask=None,
        rotary_pos_emb=model.rotary_pos_emb.at(positions[:1]).transpose(0, 1)[:, :, None],
    )
    weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
    logits, _ = model.output_layer(hidden[-ANSWER:], weight=weight, runtime_gather_output=True)
    return torch.log_softmax(logits[..., : len(loaded.tokenizer)].float(), dim=-1).transpose(0, 1)


def _rank_batches(batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """This data-parallel rank's batches and whether they count. A rank without a batch repeats the last one, because
    other ranks may need its experts."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    for start in range(0, len(batches), ranks):
        yield batches[min(start + rank, len(batches) - 1)], start + rank < len(batches)


def _total(sums: Tensor, loaded: Loaded) -> Tensor:
    sums = sums.to(_device(loaded))
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return sums.cpu()


def _device(loaded: Loaded) -> torch.device:
    device: torch.device = next(loaded.chunks[0].parameters()).device
    return device
