"""How much of a token shard nodes without a shared folder fetch, by the size of the blocks.

    .venv/bin/python benchmarks/shard_blocks.py [--tokens 7000000] [--mean 900] [--sequence 4096] [--seeds 3]

Documents have log-normal lengths; over one epoch, node i of n takes every n-th sample from the i-th on. The numbers are
copies of the shard that all nodes fetch together, mean and range over seeds. Nothing is fetched: the script counts the
blocks that the samples touch.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from cupola_platform.corpus.tokenizer.shards import ShardWriter
from cupola_trainer.config import NextTokenData
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


def counted(dtype: str, seed: int, options: argparse.Namespace) -> dict[tuple[int, int], float]:
    """Copies fetched by all nodes together, by the bytes of a block and the number of nodes."""
    with tempfile.TemporaryDirectory() as folder:
        count = write_shard(Path(folder), dtype, seed, options)
        samples = (count - 1) // options.sequence
        rows, _ = tokens.build(NextTokenData(tokens=Path(folder)), sequence_length=options.sequence, seed=seed)
        spans = [rows.sources[0].span(index) for index in range(samples)]
    itemsize = np.dtype(dtype).itemsize
    return {(block, nodes): copies(spans, block, nodes, count, itemsize) for block in BLOCKS for nodes in NODES}


def copies(spans: list[tuple[int, int]], block: int, nodes: int, size: int, itemsize: int) -> float:
    touched = [set[int]() for _ in range(nodes)]
    for sample, (first, count) in enumerate(spans):
        for begin, end in (
            (first, min(first + count, size)),
            (0, max(0, first + count - size)),
        ):  # the end goes on there
            touched[sample % nodes].update(range(begin * itemsize // block, -(-end * itemsize // block)))
    return sum(map(len, touched)) * block / (size * itemsize)


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
