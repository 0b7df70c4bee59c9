"""How much of a token shard nodes without a shared folder fetch, by the size of the blocks.

    .venv/bin/python benchmarks/shard_blocks.py [--tokens 7000000] [--mean 900] [--sequence 4096] [--seeds 3]

Documents have log-normal lengths; over one epoch, node i of n takes every n-th sample from the i-th on. The numbers are
copies of the shard that all nodes fetch together, mean and range over seeds. Nothing is fetched: the script counts the
blocks that Megatron's samples touch.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.corpus.tokenizer.shards import ShardWriter
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig, NextTokenData
from cupola_trainer.data.pretraining import tokens

BLOCKS = (2 << 10, 16 << 10)
NODES = (2, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7_000_000)
    parser.add_argument("--mean", type=int, default=900, help="Mean length of a document in tokens.")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    runtime.start(LayoutConfig(), seed=0)
    for dtype in ("uint16", "int32"):
        found = [counted(dtype, seed, options) for seed in range(options.seeds)]
        for block in BLOCKS:
            for nodes in NODES:
                copies = [each[block, nodes] for each in found]
                print(
                    f"{np.dtype(dtype).itemsize}-byte tokens, blocks of {block >> 10:2} KiB, {nodes} nodes: "
                    f"{statistics.mean(copies):.2f} copies ({min(copies):.2f} to {max(copies):.2f})",
                    flush=True,
                )
    runtime.stop()


def counted(dtype: str, seed: int, options: argparse.Namespace) -> dict[tuple[int, int], float]:
    """Copies fetched by all nodes together, by the bytes of a block and the number of nodes."""
    with tempfile.TemporaryDirectory() as folder:
        count = write_shard(Path(folder), dtype, seed, options)
        samples = (count - 1) // options.sequence
        data = NextTokenData(tokens=Path(folder))
        dataset, _ = tokens.build(
            data, sequence_length=options.sequence, samples=samples, seed=seed, cache=Path(folder) / "index"
        )
        part = getattr(dataset, "datasets", [dataset])[0]
        part.dataset.bin_reader = Noting(part.dataset.bin_reader)
        spans = []
        for index in range(samples):
            dataset[index]
            spans.append(part.dataset.bin_reader.taken())
    size = count * np.dtype(dtype).itemsize
    return {(block, nodes): copies(spans, block, nodes, size) for block in BLOCKS for nodes in NODES}


class Noting:
    """Reads as a shard's reader does, and notes what is read."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.spans = reader, list[tuple[int, int]]()

    def read(self, dtype: Any, count: int, offset: int) -> Any:
        self.spans.append((int(offset), int(offset) + int(count) * np.dtype(dtype).itemsize))
        return self.reader.read(dtype=dtype, count=count, offset=offset)

    def taken(self) -> list[tuple[int, int]]:
        spans, self.spans = self.spans, []
        return spans


def copies(spans: list[list[tuple[int, int]]], block: int, nodes: int, size: int) -> float:
    touched = [set[int]() for _ in range(nodes)]
    for sample, parts in enumerate(spans):
        for first, end in parts:
            touched[sample % nodes].update(range(first // block, -(-end // block)))
    return sum(map(len, touched)) * block / size


def write_shard(folder: Path, dtype: str, seed: int, options: argparse.Namespace) -> int:
    """A `tokens` artifact with one source of random tokens. Returns its training tokens."""
    draws = np.random.default_rng(seed)
    (folder / "shards").mkdir()
    counts = {}
    for split, wanted in (("train", options.tokens), ("heldout", 3 * options.sequence)):
        with ShardWriter(folder / "shards" / f"{split}-text", dtype) as shard:
            while shard.tokens < wanted:
                length = max(1, round(draws.lognormal(np.log(options.mean) - 0.5)))
                shard.add(draws.integers(0, 30_000, length).astype(dtype))
            counts[split] = {"documents": shard.documents, "tokens": shard.tokens, "bytes": 4 * shard.tokens}
    (folder / "index.json").write_text(json.dumps({"vocab_size": 30_000, "sources": {"text": counts}}))
    return int(counts["train"]["tokens"])


if __name__ == "__main__":
    main()
