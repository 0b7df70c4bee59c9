"""Run by test_exchange.py under torchrun: fails if an exchange differs from torch's collective."""

from types import SimpleNamespace

import torch
import torch.distributed as dist

from cupola_trainer.megatron.exchange import exchange_at_once_over_gloo, exchange_over_gloo


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    ranks = dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16):
        whole = torch.randint(-8, 8, (ranks * 5, 2)).to(dtype)  # integers, so sums are exact in any order
        part, gathered = torch.empty(5, 2, dtype=dtype), torch.empty(ranks * 5, 2, dtype=dtype)
        dist.reduce_scatter_tensor(part, whole)
        dist.all_gather_into_tensor(gathered, part)
        for mend in (exchange_over_gloo, exchange_at_once_over_gloo):
            for later in (False, True):
                _check(_patched(mend), whole.clone(), part, gathered, later)
    dist.destroy_process_group()


def _patched(patch: object) -> SimpleNamespace:
    module = SimpleNamespace(
        dist_all_gather_func=dist.all_gather_into_tensor, dist_reduce_scatter_func=dist.reduce_scatter_tensor
    )
    patch(module)  # type: ignore[operator]
    return module


def _check(
    module: SimpleNamespace, whole: torch.Tensor, part: torch.Tensor, gathered: torch.Tensor, later: bool
) -> None:
    """Separate from the source, and in place as in Megatron's buffers."""
    options = {"group": dist.group.WORLD, "async_op": later}
    own = slice(dist.get_rank() * 5, dist.get_rank() * 5 + 5)
    apart, in_place = torch.empty_like(part), whole.clone()
    for target, source in ((apart, whole), (in_place[own], in_place)):
        _wait(module.dist_reduce_scatter_func(target, source, **options))
        assert torch.equal(target, part)
    assert torch.equal(in_place[own], part)
    apart, in_place = torch.empty_like(gathered), torch.zeros_like(gathered)
    in_place[own] = part
    for target, source in ((apart, part), (in_place, in_place[own])):
        _wait(module.dist_all_gather_func(target, source, **options))
        assert torch.equal(target, gathered)


def _wait(handle: object) -> None:
    if handle is not None:
        handle.wait()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
