"""Dual chunk attention: plain within one chunk, a reference implementation beyond, forward and backward, with and
without a cache."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import DualChunk, LengthScaling, YarnRope
from cupola_trainer.conversion.config_json import from_config, to_config
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.kernels.rotary import rotary
from cupola_trainer.models.attention import dual_chunks
from cupola_trainer.models.attention.attend import Attend
from cupola_trainer.models.attention.dual_chunks import DualChunks

FREQUENCIES = (1.0, 0.3, 0.05, 0.01)


def distances(length: int, chunk: DualChunk) -> Tensor:
    """Distances between queries and keys as the report defines them, pair by pair."""
    s = chunk.chunk_size - chunk.local_window
    last = min(s - 1 + s, chunk.chunk_size)

    def place(query: int, key: int) -> int:
        back = query // s - key // s
        return query % s if back == 0 else min(query % s + s, chunk.chunk_size) if back == 1 else last

    rows = [[place(i, j) - j % s for j in range(length)] for i in range(length)]
    return torch.tensor(rows, dtype=torch.float64)


def reference(q: Tensor, k: Tensor, v: Tensor, chunk: DualChunk, scale: float) -> Tensor:
    """Pairs of dimensions as complex numbers: score = Re(q conj(k) exp(i theta distance)), full softmax, O(n^2)."""
    k, v = (tensor.repeat_interleave(q.size(1) // k.size(1), dim=1) for tensor in (k, v))
    q, k = (torch.complex(*tensor.chunk(2, dim=-1)) for tensor in (q, k))
    theta = torch.tensor(FREQUENCIES, dtype=torch.float64)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), distances(q.size(2), chunk)[..., None] * theta)
    scores = torch.einsum("bhid,bhjd,ijd->bhij", q, k.conj(), turn).real * scale
    later = torch.ones(q.size(2), q.size(2), dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, -math.inf), dim=-1) @ v


def in_place(x: Tensor, chunk: DualChunk) -> Tensor:
    """Rotate [b, heads, s, d] by position in the chunk, as the decoder's rotary embedding does."""
    theta = torch.tensor(FREQUENCIES, dtype=torch.float64)
    angles = (torch.arange(x.size(2)) % chunk.stride)[:, None] * torch.cat([theta, theta])
    return rotary(x.permute(2, 0, 1, 3), angles[:, None, None]).permute(1, 2, 0, 3)


def tensors(length: int, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(2, each, length, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for each in (heads, groups, groups)
    )
    return q, k, v


def how(chunk: DualChunk, scale: float) -> Attend:
    return Attend(scale, dual_chunks=DualChunks(chunk, FREQUENCIES, scale))


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 50),
    size=st.integers(2, 24),
    window=st.integers(0, 12),
    heads=st.sampled_from([(2, 2), (6, 2)]),
)
def test_it_equals_the_reference_forward_and_backward(
    length: int, size: int, window: int, heads: tuple[int, int]
) -> None:
    chunk = DualChunk(chunk_size=size, local_window=min(window, size // 2))
    q, k, v = tensors(length, *heads)
    expected = reference(q, k, v, chunk, 0.4)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    found = how(chunk, 0.4)(in_place(q, chunk), in_place(k, chunk), v)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for gradient, right in zip(torch.autograd.grad((found * weights).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-6)


def test_within_one_chunk_it_is_plain_attention_bit_for_bit() -> None:
    chunk = DualChunk(chunk_size=40, local_window=8)
    q, k, v = tensors(32, 4, 2)
    assert torch.equal(how(chunk, 0.4)(q, k, v), Attend(0.4)(q, k, v))


@pytest.mark.parametrize("block", [512, 3])
def test_cached_queries_and_padded_rows_match_the_whole_sequence(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_chunks, "BLOCK", block)
    chunk, padding, length = DualChunk(chunk_size=8, local_window=2), 5, 30
    q, k, v = (tensor.detach() for tensor in tensors(length, 4, 2))
    whole = reference(q, k, v, chunk, 0.4)
    q, k = in_place(q, chunk), in_place(k, chunk)
    last = how(chunk, 0.4)(q[:, :, -1:], k, v)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-5, atol=1e-6)
    before = [torch.cat([torch.randn(2, x.size(1), padding, 8, dtype=x.dtype), x], dim=2) for x in (q, k, v)]
    columns = torch.arange(length + padding)
    visible = (columns <= columns[:, None]) & (columns >= padding)
    visible = (visible | (columns == columns[:, None])).expand(2, 1, -1, -1)
    places = (columns - padding).clamp(min=0).expand(2, -1)
    found = how(chunk, 0.4)(before[0], before[1], before[2], visible, (places, places))[:, :, padding:]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["logn", "yarn"])
def test_queries_beyond_the_trained_length_grow_with_position(kind: Any) -> None:
    scaling = LengthScaling(type=kind, original_max_position_embeddings=10)
    q, k, v = (tensor.detach() for tensor in tensors(30, 2, 2))
    found = Attend(0.4, length_scaling=scaling)(q, k, v)
    for n in (1, 10, 11, 30):
        grown = max(1.0, math.log(n) / math.log(10) if kind == "logn" else 0.1 * math.log(n / 10) + 1)
        scores = torch.softmax(q[:, :, n - 1 : n] @ k[:, :, :n].transpose(-1, -2) * 0.4 * grown, dim=-1)
        torch.testing.assert_close(found[:, :, n - 1 : n], scores @ v[:, :, :n], rtol=1e-5, atol=1e-6)
        cached = Attend(0.4, length_scaling=scaling)(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n])
        torch.testing.assert_close(cached, found[:, :, n - 1 : n], rtol=1e-5, atol=1e-6)


SHAPE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "num_query_groups": 2,
    "ffn_hidden_size": 48, "max_position_embeddings": 200, "rope_theta": 1e4, "init_std": 0.15,
    "dual_chunk": DualChunk(chunk_size=16, local_window=4),
}  # fmt: skip
MODELS = {
    "alone": ModelConfig(**SHAPE),
    "with YaRN": ModelConfig(**SHAPE, rope_scaling=YarnRope(factor=2.0, original_max_position_embeddings=8)),
    "with longer queries": ModelConfig(**SHAPE, length_scaling=LengthScaling(original_max_position_embeddings=16)),
}


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache_matches_the_training_forward(name: str) -> None:
    [model] = models.build(MODELS[name], LayoutConfig(), seed=1)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(128, (length,), generator=generator).tolist() for length in (50, 3, 20, 50)]
    for batch in (prompts, [prompts[0], prompts[3]]):  # with and without padding
        found = generate([model], range(128), batch, Sampling(max_new_tokens=12), stops=[])
        for prompt, completion in zip(batch, found, strict=True):
            whole = torch.tensor([prompt + completion.tokens])
            with torch.no_grad():
                positions = torch.arange(whole.size(1) - 1)[None]
                losses = model(whole[:, :-1], positions, None, labels=whole[:, 1:])
            expected = -losses[0, len(prompt) - 1 :]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("one_process")
def test_chunks_change_logits_only_beyond_the_chunk_size() -> None:
    tokens, positions = torch.arange(40)[None], torch.arange(40)[None]
    with torch.no_grad():
        chunked, plain = (
            models.build(replace(MODELS["alone"], dual_chunk=chunk), LayoutConfig(), seed=1)[0](tokens, positions, None)
            for chunk in (SHAPE["dual_chunk"], None)
        )
    torch.testing.assert_close(
        chunked[:, :17], plain[:, :17], rtol=0, atol=1e-5
    )  # a chunk, the window, and their distance
    assert (chunked - plain)[:, 17:].abs().amax(dim=-1).min() > 1e-3


def test_config_json_stores_chunks_as_qwens_long_models_do() -> None:
    model = replace(MODELS["alone"], length_scaling=LengthScaling(type="yarn", original_max_position_embeddings=16))
    config = to_config(model, dtype="float32", bos=None, eos=None, pad=None)
    assert config["dual_chunk_attention_config"] == {
        "chunk_size": 16, "local_size": 4, "original_max_position_embeddings": 16,
    }  # fmt: skip
    assert from_config(config) == model
    assert (
        from_config(to_config(MODELS["with YaRN"], dtype="float32", bos=None, eos=None, pad=None))
        == MODELS["with YaRN"]
    )
    with pytest.raises(ConfigError, match="no entry for length_scaling of type logn with dual_chunk"):
        to_config(MODELS["with longer queries"], dtype="float32", bos=None, eos=None, pad=None)
    with pytest.raises(ConfigError, match=r"dual_chunk_attention_config\.sparse_attention_enabled is not supported"):
        from_config(config | {"dual_chunk_attention_config": {"chunk_size": 16, "sparse_attention_enabled": True}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_chunk": {"chunk_size": 16, "local_window": 9}}, "local_window=9 is more than half of chunk_size=16"),
        ({"attention_windows": (8,)}, "dual_chunk with attention_windows"),
        ({"attn_logit_softcapping": 5.0}, "dual_chunk with attn_logit_softcapping"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4, "original_max_position_embeddings": 64}}, "of type dynamic"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 4}},
            "dual_chunk.chunk_size=16 is beyond what yarn allows: .* = 8",
        ),
    ],
)
def test_settings_that_exclude_dual_chunks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**SHAPE | change)


LONG = """
import resource, torch
from cupola_trainer import models, runtime
from cupola_trainer.config import ModelConfig, LayoutConfig

runtime.start(LayoutConfig(), seed=0)
[model] = models.build(ModelConfig(
    vocab_size=1024, hidden_size=256, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=512,
    max_position_embeddings=32768, dual_chunk={"chunk_size": 2048, "local_window": 512},
), LayoutConfig())
tokens = torch.randint(1024, (1, 32768))
weights = torch.ones(1, 32768)
losses = model(tokens, torch.arange(32768)[None], None, labels=tokens, loss_mask=weights)
losses.sum().backward()
assert all(torch.isfinite(each.grad).all() for each in model.parameters())
print("bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_thirty_two_thousand_tokens_forward_and_backward_fit_in_four_gibibytes() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert int(done.stdout.split("bytes")[1]) < 4 * 2**30
