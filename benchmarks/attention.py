"""Causal attention of one long sequence on a CPU, forward and backward: ours by tiles and torch's own, by turns.

python benchmarks/attention.py [--heads 8] [--groups 4] [--head-dim 40] [--length 2048] [--threads 1,2] [--rounds 8]
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola_trainer.kernels.tiled_attention import tiled_attention
from cupola_trainer.runtime.allocator import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"heads": 8, "groups": 4, "head-dim": 40, "length": 2048, "rounds": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    keep_freed_memory()
    heads = (options.heads, options.groups, options.groups)
    tensors = [torch.randn(1, n, options.length, options.head_dim, requires_grad=True) for n in heads]
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        found: dict[str, list[tuple[float, float]]] = {"cupola": [], "torch": []}
        for _ in range(options.rounds):
            found["cupola"].append(seconds(tiled_attention, tensors))
            found["torch"].append(seconds(torch_s, tensors))
        for name, rounds in found.items():
            forward, backward = (1000 * min(part) for part in zip(*rounds, strict=True))
            print(f"{threads} threads  {name:7} forward {forward:6.1f} ms  backward {backward:6.1f} ms", flush=True)


def torch_s(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.size(1) != key.size(1))


def seconds(attention: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[float, float]:
    """Of wall: forward, backward."""
    begun = time.perf_counter()
    output = attention(*tensors)
    halfway = time.perf_counter()
    torch.autograd.grad(output, tensors, output.detach())
    return halfway - begun, time.perf_counter() - halfway


if __name__ == "__main__":
    main()
