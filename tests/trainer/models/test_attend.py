"""Windows and soft-capping against a reference implementation, forward and backward, in one block and in many."""

import math

import pytest
import torch
from torch import Tensor

from cupola_trainer.models.attention import attend
from cupola_trainer.models.attention.attend import Attend


def reference(q: Tensor, k: Tensor, v: Tensor, how: Attend, visible: Tensor | None = None) -> Tensor:
    """The formula, one head at a time; a group's keys serve several heads."""
    k, v = (tensor.repeat_interleave(q.size(1) // k.size(1), dim=1) for tensor in (k, v))
    scores = q @ k.transpose(-1, -2) * (how.scale or 1 / math.sqrt(q.size(-1)))
    if how.softcap:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    distance = torch.arange(k.size(2) - q.size(2), k.size(2))[:, None] - torch.arange(k.size(2))
    seen = (distance >= 0) & (distance < (how.window or k.size(2)))
    seen = seen if visible is None else seen & visible
    return torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1) @ v


@pytest.mark.parametrize("queries", [40, 7, 1])
@pytest.mark.parametrize("how", [Attend(), Attend(window=9), Attend(0.3, 2.0), Attend(0.3, 2.0, 9)], ids=str)
def test_attention_equals_the_reference_implementation(
    how: Attend, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(2, heads, length, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, length in ((4, queries), (2, 40), (2, 40))
    )
    documents = torch.ones(2, 1, queries, 40, dtype=torch.bool)
    documents[1, :, :, :5] = False
    documents[1, :, :, :5] |= torch.eye(40, dtype=torch.bool)[40 - queries :, :5]
    for visible in (None, documents):
        causal = None if visible is None else visible & torch.ones(40, 40, dtype=torch.bool).tril()[40 - queries :]
        expected = reference(q, k, v, how, causal)
        weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
        for block in (512, 16):
            monkeypatch.setattr(attend, "BLOCK", block)
            found = how(q, k, v, causal)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # softmax is in fp32
            gradients = torch.autograd.grad((found * weights).sum(), (q, k, v))
            for gradient, right in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-6)
