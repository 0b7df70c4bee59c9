"""Memory and speed of long sequences on one process: dual chunk attention against plain attention.

    python benchmarks/long_context.py --lengths 4096,8192,16384,32768

A model with 2 layers and hidden size 256 runs one forward and backward pass over one sequence, with a new process for
each length and method. Prints seconds and the peak resident memory, including model, gradients and libraries, but no
optimizer.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

CHUNK = {"chunk_size": 2048, "local_window": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4096,8192,16384,32768")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    print(f"{'tokens':>8} {'method':>8} {'seconds':>8} {'GiB':>6}")
    for length in options.lengths.split(","):
        for method in ("plain", "dual"):
            command = [sys.executable, __file__, "--one", method, length]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{length:>8} {method:>8} {found['seconds']:8.1f} {found['bytes'] / 2**30:6.2f}", flush=True)


def measure(method: str, length: int) -> dict[str, float]:
    """Seconds of one forward and backward pass, and peak bytes."""
    warnings.simplefilter("ignore")
    import torch

    from cupola_trainer import models, runtime
    from cupola_trainer.config import LayoutConfig
    from cupola_trainer.config.model.architecture import ModelConfig
    from cupola_trainer.config.model.positions import DualChunk

    runtime.start(LayoutConfig(), seed=0)
    model = ModelConfig(
        vocab_size=1024, hidden_size=256, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=512,
        max_position_embeddings=length, dual_chunk=DualChunk(**CHUNK) if method == "dual" else None,
    )  # fmt: skip
    [chunk] = models.build(model, LayoutConfig())
    tokens = torch.randint(1024, (1, length), device=runtime.device())
    positions = torch.arange(length, device=runtime.device())[None]
    started = time.perf_counter()
    losses = chunk(tokens, positions, None, labels=tokens, loss_mask=torch.ones_like(tokens, dtype=torch.float32))
    losses.sum().backward()
    runtime.synchronize()
    seconds = time.perf_counter() - started
    runtime.stop()
    return {"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    main()
