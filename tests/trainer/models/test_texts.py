"""Several texts in one row: none sees another, each is trained as if it were alone, and memory is linear."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.trainer.models.test_against_transformers import (
    DENSE,
    GEMMA2,
    GEMMA3,
    LLAMA,
    MOE,
    QK_NORM,
    huggingface,
    named_tensors,
)
from torch import Tensor
from torch.nn import functional as F

from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.config.model.positions import DualChunk, DynamicRope, LengthScaling, YarnRope
from cupola_trainer.conversion.mapping import from_huggingface
from cupola_trainer.conversion.model_writer import fill
from cupola_trainer.forward.schedule import forward
from cupola_trainer.models.attention.contexts import split
from cupola_trainer.models.attention.texts import Texts

LENGTHS = ((13, 1, 18), (32,), (5, 5, 22))
YARN = YarnRope(factor=2.0, original_max_position_embeddings=8)
MODELS = {
    "dense": DENSE,
    "moe": MOE,
    "llama": LLAMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "qk_norm": QK_NORM,
    "dual_chunk": replace(DENSE, rope_scaling=YARN, dual_chunk=DualChunk(chunk_size=12, local_window=4)),
    "dynamic": replace(DENSE, rope_scaling=DynamicRope(factor=4.0, original_max_position_embeddings=8)),
    "logn": replace(DENSE, length_scaling=LengthScaling(original_max_position_embeddings=8)),
}


def segments(lengths: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


def batch_of(tokens: Tensor, lengths: Sequence[Sequence[int]] | None) -> dict[str, Tensor]:
    batch = {
        "tokens": tokens,
        "labels": tokens.roll(-1, dims=1),
        "loss_mask": torch.ones(tokens.shape),
        "position_ids": torch.arange(tokens.size(1)).expand_as(tokens).contiguous(),
    }
    return batch if lengths is None else {**batch, "segments": segments(lengths)}


def built(model: ModelConfig) -> Any:
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(replace(model, init_std=0.1), LayoutConfig(), seed=5)
    return chunk


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 128, (3, 32), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_one_text_changes_no_loss_of_another(name: str, tokens: Tensor) -> None:
    chunk = built(MODELS[name])
    changed = tokens.clone()
    changed[0, :13] = torch.arange(100, 113)
    with torch.no_grad():
        before, after = (forward(batch_of(each, LENGTHS), chunk, "logits") for each in (tokens, changed))
    assert torch.equal(before[0, 13:], after[0, 13:]), "the texts after it"
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0, :13], after[0, :13])


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_flows_into_another_text(name: str, tokens: Tensor) -> None:
    chunk = built(MODELS[name])
    embedded: list[Tensor] = []
    chunk.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = forward(batch_of(tokens, LENGTHS), chunk, "logits")
    (gradient,) = torch.autograd.grad(logits[0, 14:].square().sum(), embedded[0])  # [s, b, h]
    assert torch.all(gradient[14:, 0].abs().amax(-1) > 0)
    assert torch.all(gradient[:14, 0] == 0)
    assert torch.all(gradient[:, 1:] == 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_that_shares_a_row_is_computed_as_if_it_were_alone(name: str, tokens: Tensor) -> None:
    chunk = built(MODELS[name])
    with torch.no_grad():
        packed = forward(batch_of(tokens, LENGTHS), chunk, "logits")
        for row, lengths in enumerate(LENGTHS):
            parts = zip(tokens[row].split(lengths), packed[row].split(lengths), strict=True)
            for text, found in parts:
                alone = forward(batch_of(text[None], None), chunk, "logits")[0]
                torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "moe", "gemma2"])
def test_losses_of_packed_texts_are_those_of_transformers_for_each_alone(name: str, tokens: Tensor) -> None:
    model = MODELS[name]
    theirs = huggingface(model).eval()
    chunk = built(model)
    tensors = named_tensors(theirs, model.moe is not None)
    fill([chunk], lambda key, index: from_huggingface(model, key, index, tensors.__getitem__))
    batch = batch_of(tokens, LENGTHS)
    with torch.no_grad():
        found = forward(batch, chunk, "token_losses")
        for row, lengths in enumerate(LENGTHS):
            place = 0
            for length in lengths:
                text = tokens[row, place : place + length]
                wanted = F.cross_entropy(theirs(text[None]).logits[0], batch["labels"][row, place : place + length],
                                         reduction="none")  # fmt: skip
                torch.testing.assert_close(found[row, place : place + length], wanted, rtol=1e-5, atol=1e-5)
                place += length


def test_texts_are_runs_of_equal_numbers() -> None:
    texts = Texts.of(torch.tensor([[1, 1, 2, 0, 0], [4, 4, 4, 4, 4]]))
    assert texts.lengths == ((2, 1, 2), (5,))
    positions, lengths = texts.places()
    assert positions.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert lengths.tolist() == [[2, 2, 1, 2, 2], [5] * 5]
    assert texts.starts.tolist() == [0, 2, 3, 5, 10]
    assert texts.longest == 5


@pytest.mark.parametrize(("heads", "ranks"), [(8, 2), (7, 2), (7, 8), (28, 8), (1, 3)])
def test_heads_are_spread_as_equally_as_they_can_be(heads: int, ranks: int) -> None:
    parts = split(heads, ranks)
    assert [head for part in parts for head in part] == list(range(heads))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
