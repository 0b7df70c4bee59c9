"""Each fused operation against the equivalent plain torch expression, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola_trainer.kernels.causal_attention import causal_attention
from cupola_trainer.kernels.linear_cross_entropy import Guess, linear_cross_entropy
from cupola_trainer.kernels.rms_norm import rms_norm
from cupola_trainer.kernels.rotary import rotary
from cupola_trainer.kernels.swiglu import swiglu

N, H, V = 37, 8, 50


def head(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden = torch.randn(N, H, dtype=dtype, requires_grad=True)
    return hidden, torch.randn(V, H, dtype=dtype, requires_grad=True), torch.randint(V, (N,))


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None) -> Tensor:
    logits = hidden @ weight.t()
    return F.cross_entropy(
        logits if softcap is None else softcap * torch.tanh(logits / softcap), labels, reduction="none"
    )


MASK = (torch.arange(N) % 3 > 0).double()
GRADIENTS = {"the mask": MASK, "the mask, scaled": MASK * 0.37, "of pairs": torch.linspace(-1, 1, N).double()}
"""Where the mask is 0 the loss is 0, whatever its gradient."""


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("of", GRADIENTS)
def test_linear_cross_entropy_equals_torchs_for_any_gradient(of: str, softcap: float | None) -> None:
    hidden, weight, labels = head(0)
    guess = Guess()
    losses = linear_cross_entropy(hidden, weight, labels, MASK, softcap=softcap, guess=guess, rows=16)
    expected = plain(hidden, weight, labels, softcap) * MASK
    assert torch.allclose(losses, expected, rtol=1e-12)
    found_gradients = torch.autograd.grad(losses, (hidden, weight), GRADIENTS[of])
    for found, wanted in zip(
        found_gradients, torch.autograd.grad(expected, (hidden, weight), GRADIENTS[of]), strict=True
    ):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-13)
    assert guess.holds == (of != "of pairs")


def test_a_batch_without_trained_tokens_has_no_loss_and_no_gradient() -> None:
    hidden, weight, labels = head(6)
    losses = linear_cross_entropy(hidden, weight, labels, torch.zeros(N).double(), rows=16)
    assert losses.tolist() == [0.0] * N
    for gradient in torch.autograd.grad(losses.sum(), (hidden, weight)):
        assert torch.count_nonzero(gradient) == 0


def test_its_gradient_equals_finite_differences() -> None:
    hidden, weight, labels = head(1)
    assert torch.autograd.gradcheck(
        lambda x, w: linear_cross_entropy(x, w, labels[:5], rows=2), (hidden[:5].detach().requires_grad_(), weight)
    )


def test_a_label_whose_probability_underflows_keeps_its_loss() -> None:
    hidden, weight, labels = head(2, torch.float32)
    far = (100 * hidden).detach().requires_grad_()
    losses, expected = linear_cross_entropy(far, weight, labels, rows=16), plain(far, weight, labels)
    assert expected.max() > 1000
    assert torch.allclose(losses, expected, rtol=1e-6)
    assert torch.isfinite(torch.autograd.grad(losses.sum(), weight)[0]).all()


def test_losses_without_gradient_keep_the_shape_of_the_labels() -> None:
    hidden, weight, labels = head(3, torch.float32)
    with torch.no_grad():
        losses = linear_cross_entropy(hidden[:36].view(4, 9, H), weight, labels[:36].view(4, 9), rows=5)
    assert losses.shape == (4, 9)
    assert torch.allclose(losses.flatten(), plain(hidden, weight, labels)[:36], rtol=1e-5)
    assert not losses.requires_grad


def test_a_second_backward_computes_the_same_gradient_again() -> None:
    hidden, weight, labels = head(4)
    losses = linear_cross_entropy(hidden, weight, labels, MASK, rows=16)
    first, second = (torch.autograd.grad((losses * MASK).sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert torch.allclose(first, second, rtol=1e-12)


def same(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Compare values, and gradients for a non-uniform output gradient."""
    gradient = torch.linspace(-1, 1, expected.numel(), dtype=expected.dtype).view(expected.shape)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_rotary_rotates_pairs_by_their_angles() -> None:
    torch.manual_seed(5)
    x = torch.randn(6, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(6, 1, 1, 4, dtype=torch.float64).repeat(1, 1, 1, 2)
    halves = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
    for _ in range(2):  # the second time with cached cosines
        same(rotary(x, angles), x * angles.cos() + halves * angles.sin(), x)
    assert rotary(x.bfloat16(), angles.float()).dtype is torch.bfloat16


def test_rotary_with_per_row_positions_preserves_norms() -> None:
    x = torch.randn(6, 3, 2, 8, requires_grad=True)
    turned = rotary(x, torch.randn(6, 3, 1, 4).repeat(1, 1, 1, 2))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_swiglu_equals_the_product_with_silu() -> None:
    torch.manual_seed(6)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    same(swiglu(x), F.silu(gate) * up, x)
    assert torch.autograd.gradcheck(swiglu, x)


def test_swiglu_weighs_tokens() -> None:
    torch.manual_seed(7)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    token_weights = torch.rand(5, 1, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    same(swiglu(x, token_weights), F.silu(gate) * up * token_weights, x, token_weights)
    assert torch.autograd.gradcheck(swiglu, (x, token_weights))


@pytest.mark.parametrize("length", [2, 64, 150])
@pytest.mark.parametrize("heads", [2, 6])
def test_causal_attention_equals_torchs(heads: int, length: int) -> None:
    """Lengths of one block, several, and a partial last one; groups of one head and of three."""
    torch.manual_seed(8)
    query = torch.randn(3, heads, length, 4, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(3, 2, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    same(causal_attention(query, key, value, 0.3), expected, query, key, value)


def test_causal_attention_accepts_a_decoders_memory_layout() -> None:
    """Sequence-first in memory, as the projection returns it."""
    torch.manual_seed(9)
    query, key, value = (torch.randn(70, 2, 4, 6).permute(1, 2, 0, 3) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.allclose(causal_attention(query, key, value), expected, atol=1e-6)


def test_rms_norm_equals_torchs() -> None:
    torch.manual_seed(10)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    same(rms_norm(x, weight, 1e-3), F.rms_norm(x, (8,), weight, 1e-3), x, weight)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight))


def test_rms_norm_accepts_non_contiguous_heads() -> None:
    torch.manual_seed(10)
    mixed = torch.randn(5, 3, 2, 4, 8, dtype=torch.float64, requires_grad=True)  # groups of two queries, a key, a value
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    of_heads = torch.randn(5, 3, 4, 8, 2, dtype=torch.float64).movedim(-1, 2)
    for head in (slice(0, 2), slice(2, 3)):
        ours = rms_norm(mixed[..., head, :], weight, 1e-3)
        theirs = F.rms_norm(mixed[..., head, :], (8,), weight, 1e-3)
        given = of_heads[..., head, :]
        assert not given.is_contiguous()
        found = torch.autograd.grad(ours, (mixed, weight), given)
        expected = torch.autograd.grad(theirs, (mixed, weight), given)
        assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
