"""What stands in for Apex's multi-tensor functions."""

from types import SimpleNamespace

import pytest
import torch

from cupola_trainer.megatron import shortcuts


@pytest.mark.parametrize("sizes", [[(2000, 4096), (3,), (64, 320)], [(9_000_001,)], [(0,), (5, 5)]])
def test_the_norm_of_large_gradients_is_that_of_fp64(sizes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    megatron = SimpleNamespace()
    shortcuts.many_tensors_at_once(megatron)
    tensors = [torch.randn(size) for size in sizes]
    truth = torch.cat([x.flatten() for x in tensors]).double().norm()
    found, _ = megatron.local_multi_tensor_l2_norm(2048, torch.zeros(1), [tensors], False)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(truth.item(), rel=1e-6)
