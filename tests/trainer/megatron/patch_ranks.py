"""Run by test_patches.py under torchrun on two ranks: checks the patches of Megatron's collectives.

patch_ranks.py OUTPUT.json      {check: "" or what went wrong on rank 0}
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig


def gloos_own(*args: object, **options: object) -> None:
    raise AssertionError("gloo's own collective was called")


def import_megatron() -> None:
    """Import Megatron's modules while gloo's collectives are replaced, since they bind them at import."""
    originals = dist.all_gather_into_tensor, dist.reduce_scatter_tensor
    dist.all_gather_into_tensor = dist.reduce_scatter_tensor = gloos_own
    import megatron.core.distributed.param_and_grad_buffer
    import megatron.core.tensor_parallel.layers
    import megatron.core.tensor_parallel.mappings  # noqa: F401

    dist.all_gather_into_tensor, dist.reduce_scatter_tensor = originals


def capacity() -> None:
    """Each of two experts keeps two tokens of four: the most probable ones, on either rank."""
    from megatron.core.transformer.moe.router import apply_router_token_dropping

    probs = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.0, 0.6]]).chunk(2)[dist.get_rank()]
    kept, kept_map = apply_router_token_dropping(probs, probs > 0, 1, 1.0, drop_policy="probs", pad_to_capacity=False)
    expected = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.0], [0.0, 0.6]]).chunk(2)[dist.get_rank()]
    equal(kept, expected)
    equal(kept_map, expected > 0)


def uneven() -> None:
    """One row from the first rank, two from the second."""
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
    )

    rank = dist.get_rank()
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    part = rows.split([1, 2])[rank]
    equal(gather_from_sequence_parallel_region(part, group=tensor_group(), output_split_sizes=[1, 2]), rows)
    mine = reduce_scatter_to_sequence_parallel_region(rows * (rank + 1), group=tensor_group(), input_split_sizes=[1, 2])
    equal(mine, part * 3)


def mappings() -> None:
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
    )

    rows = torch.tensor([[1.0], [2.0]])
    part = rows.chunk(2)[dist.get_rank()]
    equal(gather_from_sequence_parallel_region(part, group=tensor_group()), rows)
    equal(reduce_scatter_to_sequence_parallel_region(rows, group=tensor_group()), part * 2)


def layers() -> None:
    """Forward gathers the sequence; backward gathers it again and reduce-scatters the sum."""
    from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce

    part = torch.tensor([[1.0], [2.0]]).chunk(2)[dist.get_rank()].requires_grad_()
    weight = torch.tensor([[float(dist.get_rank() + 1)]], requires_grad=True)
    output = linear_with_grad_accumulation_and_async_allreduce(
        part, weight, None, gradient_accumulation_fusion=False, allreduce_dgrad=False, sequence_parallel=True,
        tp_group=tensor_group(),
    )  # fmt: skip
    equal(output, torch.tensor([[1.0], [2.0]]) * weight)
    output.sum().backward()
    equal(part.grad, torch.tensor([[3.0]]))
    equal(weight.grad, torch.tensor([[3.0]]))


def buffers() -> None:
    """Each rank owns half of the mean gradient, and sends the other its half of the new weights."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
    module = torch.nn.Linear(64, 2, bias=False)
    torch.nn.init.zeros_(module.weight)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(use_distributed_optimizer=True), module)
    model.zero_grad_buffer()
    model(torch.full((1, 64), float(dist.get_rank()))).sum().backward()  # 0 and 1
    model.finish_grad_sync()
    own = slice(dist.get_rank() * 64, dist.get_rank() * 64 + 64)
    equal(module.weight.main_grad.view(-1)[own], torch.full((64,), 0.5))
    module.weight.data.view(-1)[own] = dist.get_rank() + 1.0
    model.start_param_sync(force_sync=True)
    equal(module.weight.data, torch.tensor([[1.0], [2.0]]).expand(2, 64))


def tensor_group() -> Any:
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def equal(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert torch.equal(found, expected), f"{found.tolist()} and not {expected.tolist()}"


def outcome(check: Any) -> str:
    try:
        check()
    except Exception:  # noqa: BLE001 - each check has its own test
        return traceback.format_exc()
    return ""


def main() -> None:
    import_megatron()
    found: dict[str, Any] = {}
    for layout, checks in (
        (LayoutConfig(tp=2, sp=True), (capacity, uneven, mappings, layers)),
        (LayoutConfig(dp=2), (buffers,)),
    ):
        runtime.start(layout, seed=0)
        found |= {check.__name__: outcome(check) for check in checks}
    if runtime.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    main()
