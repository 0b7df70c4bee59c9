"""Packed token sequences from a `tokens` artifact: Megatron's IndexedDataset, GPTDataset and blending."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from cupola_platform.durable import sync_file_system
from cupola_platform.errors import ConfigError, SourceError
from cupola_trainer.config import NextTokenData
from cupola_trainer.data.pretraining.shards import TokenDataset
from cupola_trainer.runtime import folders

Dataset = Any
"""Megatron's BlendedDataset or GPTDataset: `len`, and items with tokens, labels, loss_mask, position_ids [s]."""


@dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer attributes that GPTDataset reads. There is no padding: shards are one stream of documents."""

    eod: int = -1
    pad: int = -1
    vocab_size: int | None = None
    special_tokens_dict: dict[str, int] = field(default_factory=dict)
    unique_identifiers: dict[str, str] = field(default_factory=dict)


def build(
    data: NextTokenData, *, sequence_length: int, samples: int, seed: int, cache: Path
) -> tuple[Dataset, Dataset]:
    """Training samples, at least `samples` of them over reshuffled epochs, and one epoch of held-out samples. Both are
    determined by the seed. The latter are empty if the held-out shards do not fill one sequence.

    Args:
        cache: folder for Megatron's index files.

    Raises:
        SourceError: the folder holds no token shards, or too few tokens for one sequence.
        ConfigError: a weight names an unknown source.
    """
    sources = _sources(data)
    train = _prefixes(data, sources, "train", sequence_length)
    if not train:
        raise SourceError(
            f"{data.tokens} has no training source with more than {sequence_length} tokens. "
            "Add text, or shorten sequence_length."
        )
    weights = [(data.weights or {}).get(name, sources[name]["train"]["tokens"]) for name in train]
    heldout = _prefixes(data, sources, "heldout", sequence_length)
    builder = BlendedMegatronDatasetBuilder(
        TokenDataset,
        [samples, None, None],
        lambda: True,
        GPTDatasetConfig(
            random_seed=seed,
            sequence_length=sequence_length,
            blend_per_split=[
                (list(train.values()), weights),
                (list(heldout.values()), None) if heldout else None,
                None,
            ],
            path_to_cache=str(cache),
            tokenizer=_Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        ),
    )
    with _whole(cache):
        datasets = builder.build()
    return datasets[0], datasets[1] or []


@contextmanager
def _whole(cache: Path) -> Iterator[None]:
    """Discard the index if a job was killed while writing it: Megatron would read the truncated file as complete.

    Megatron lets rank 0 build the index and all read it. Where nodes share no folder, the first rank of each does.
    """
    marker = cache / "whole"
    if folders.leads():
        if not marker.exists():
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
    get_rank = dist.get_rank
    if not folders.is_shared():
        dist.get_rank = lambda *_: folders.share()[0]
    try:
        yield
    finally:
        dist.get_rank = get_rank
    if folders.leads():
        sync_file_system(cache)
        marker.touch()


def end_of_document(data: NextTokenData) -> int:
    """The token that ends each document. Raises SourceError if the artifact has none."""
    end = _index(data).get("end_of_document")
    if end is None:
        raise SourceError(
            f"{data.tokens} names no end_of_document: prepare it again, or disable reset_at_documents and copying."
        )
    return int(end)


def _index(data: NextTokenData) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((data.tokens / "index.json").read_text())
        index["sources"]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{data.tokens} is not a tokens artifact: its index.json cannot be read ({error}).") from None
    return index


def _sources(data: NextTokenData) -> dict[str, dict[str, dict[str, int]]]:
    sources: dict[str, dict[str, dict[str, int]]] = _index(data)["sources"]
    unknown = sorted(set(data.weights or {}) - set(sources))
    if unknown:
        raise ConfigError(
            f"weights name {unknown[0]!r}, which is not a source of {data.tokens}. Choose from {sorted(sources)}."
        )
    return sources


def _prefixes(
    data: NextTokenData, sources: dict[str, dict[str, dict[str, int]]], split: str, sequence_length: int
) -> dict[str, str]:
    """Shard path without suffix, for each source that fills a sequence and has a weight above zero."""
    return {
        name: str(data.tokens / "shards" / f"{split}-{name}")
        for name, counts in sources.items()
        if counts.get(split, {}).get("tokens", 0) > sequence_length and (data.weights or {}).get(name, 1.0) > 0
    }
