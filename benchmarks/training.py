"""Training speed and memory against Hugging Face Trainer and a bare transformers loop: same model and shards.

    python benchmarks/training.py [--sizes 1m,10m,1m-152k] [--sequences 256,2048] [--processes 1,2] [--rounds 3]
                                  [--seconds 12] [--peers cupola,loop,trainer] [--by-turns]

Peers take turns in fresh processes, and the best round of each counts. Ratios are cupola's tokens per second of wall
time, and per second of CPU time, over the peer's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from cupola_platform.corpus.tokenizer.shards import ShardWriter

SIZES = {  # hidden, layers, heads, ffn, vocabulary, experts, experts of a token
    "1m": (128, 4, 4, 352, 4096, 0, 0),
    "10m": (320, 7, 8, 864, 4096, 0, 0),
    "1m-152k": (128, 4, 4, 352, 152_064, 0, 0),
    "50m-152k": (256, 8, 4, 704, 152_064, 0, 0),
    "8-experts": (160, 2, 4, 224, 4096, 8, 2),
    "64-experts": (160, 2, 4, 64, 4096, 64, 8),
}
TOKENS_A_STEP = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1m,10m,1m-152k")
    parser.add_argument("--sequences", default="256,2048")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--peers", default="cupola,loop,trainer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument(
        "--by-turns", action="store_true", help="alternate steps of ours and of the bare loop in one process"
    )
    options = parser.parse_args()
    for size in options.sizes.split(","):
        for sequence in map(int, options.sequences.split(",")):
            if options.by_turns:  # in one process
                compare_by_turns(size, sequence, options.seconds)
                continue
            for processes in map(int, options.processes.split(",")):
                compare(options.peers.split(","), size, sequence, processes, options.rounds, options.seconds)


def compare(peers: list[str], size: str, sequence: int, processes: int, rounds: int, seconds: float) -> None:
    """Print one case, with a line per peer."""
    rows = max(TOKENS_A_STEP // sequence, processes)
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "tokens", SIZES[size][4])
        for _ in range(rounds):
            for peer in peers:
                found = measure(peer, (*SIZES[size], sequence, rows), processes, seconds, folder)
                best[peer] = better(best.get(peer), found)
    print(f"{size}, sequence {sequence}, {processes} process{'es' if processes > 1 else ''}, {rows} rows per step")
    ours = best[peers[0]]
    for peer, found in best.items():
        wall, cpu = (ours[key] / found[key] for key in ("tokens_per_second", "tokens_per_cpu_second"))
        print(
            f"  {peer:14} {found['tokens_per_second']:9,.0f} tokens/s  {found['tokens_per_cpu_second']:9,.0f} per CPU-s "
            f" {found['memory_gib']:5.2f} GiB   ratio {wall:.2f} wall, {cpu:.2f} CPU",
            flush=True,
        )


def compare_by_turns(size: str, sequence: int, seconds: float) -> None:
    """One case for a busy machine: CPU seconds per step of ours and of the bare loop, in turns in one process."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "tokens", SIZES[size][4])
        found = measure("by-turns", (*SIZES[size], sequence, TOKENS_A_STEP // sequence), 1, seconds, folder)
    ours, theirs = found["cupola_cpu_seconds_a_step"], found["loop_cpu_seconds_a_step"]
    print(
        f"{size}, sequence {sequence}: loop {theirs:.3f}, cupola {ours:.3f} CPU-seconds per step, ratio "
        f"{found['ratio_of_least']:.2f}, median of turns {found['ratio']:.2f}; matrix products alone would give "
        f"{found['highest_ratio']:.2f}",
        flush=True,
    )


def better(old: dict[str, float] | None, new: dict[str, float]) -> dict[str, float]:
    """The higher speed and the lower memory."""
    if old is None:
        return new
    return {key: min(old[key], new[key]) if key == "memory_gib" else max(old[key], new[key]) for key in new}


def measure(peer: str, numbers: tuple[int, ...], processes: int, seconds: float, folder: str) -> dict[str, float]:
    """Speed and memory of a peer, summed over its processes."""
    worker = Path(__file__).with_name("training_worker.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--log-dir={os.devnull}",
        str(worker),
    ]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    done = subprocess.run(
        [*command, peer, *map(str, numbers), str(seconds), folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        sys.exit(f"{peer} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    line: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: value for key, value in line.items() if key != "peer"}


def write_shard(folder: Path, vocab: int) -> None:
    """Random tokens with Zipf frequencies, as in natural language; their meaning does not affect speed."""
    draws = np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    counts = {}
    for split, documents in (("train", 400), ("heldout", 4)):
        with ShardWriter(folder / "shards" / f"{split}-text", "int32") as shard:
            for _ in range(documents):
                shard.add(np.minimum(draws.zipf(1.2, 5000), vocab - 1).astype(np.int32))
            counts[split] = {"documents": shard.documents, "tokens": shard.tokens, "bytes": 4 * shard.tokens}
    (folder / "index.json").write_text(json.dumps({"vocab_size": vocab, "sources": {"text": counts}}))


if __name__ == "__main__":
    main()
