"""Long-context evaluation: agreement with a training forward pass, and the configurations of the methods."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig, LongContextConfig, PositionChange
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.long_context import layer_windows, method, stretch
from cupola_trainer.config.model.positions import DualChunk, DynamicRope, LengthScaling, YarnRope
from cupola_trainer.evaluation.long_context import ANSWER, _cell, _cells, measure
from cupola_trainer.evaluation.long_context_page import page, summary
from cupola_trainer.generation.loading import load

MODEL = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=4, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=48,
    max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip
CONFIG = LongContextConfig(
    methods=("none", "dca", "dca+yarn", "ntk"), lengths=(64, 192), trained_length=64, depths=(0.0, 1.0), needles=3
)
STREAM = np.random.default_rng(1).integers(3, 500, 1000)


@pytest.fixture(scope="module")
def saved(saved: Path) -> Path:
    return saved / "dense"


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def test_each_method_gives_its_configuration() -> None:
    def at(name: str) -> ModelConfig:
        return method(MODEL, name, trained=64, longest=256)

    assert at("none") == stretch(MODEL, PositionChange(), 256)
    assert at("yarn").rope_scaling == YarnRope(factor=4.0, original_max_position_embeddings=64)
    assert at("ntk").rope_scaling == DynamicRope(factor=4.0, original_max_position_embeddings=64)
    assert at("dca").dual_chunk == DualChunk(chunk_size=64, local_window=16)
    assert at("logn").length_scaling == LengthScaling(original_max_position_embeddings=64)
    assert at("windows").attention_windows == layer_windows(4, 16, 64) == (16, 25, 40, 64)
    both = at("dca+yarn")
    assert (both.dual_chunk, both.rope_scaling) == (at("dca").dual_chunk, at("yarn").rope_scaling)
    assert both.max_position_embeddings == 256


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nkt", "method 'nkt' is not known. Known: none, linear, yarn"),
        ("yarn+ntk", r"method yarn\+ntk: two of its parts set rope_scaling"),
        ("dca+ntk", r"method dca\+ntk: dual_chunk with rope_scaling of type dynamic"),
    ],
)
def test_unknown_or_conflicting_methods_are_refused_in_one_line(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        method(MODEL, name, trained=64, longest=256)


def test_a_length_beyond_a_checkpoints_positions_is_refused_in_one_line() -> None:
    change = PositionChange(rope_scaling=YarnRope(factor=2.0, original_max_position_embeddings=64))
    reaching = stretch(MODEL, change, 128)
    with pytest.raises(
        ConfigError, match=r"method none: max_position_embeddings=256 is beyond what yarn allows: .* = 128"
    ):
        method(reaching, "none", trained=128, longest=256)


@pytest.mark.usefixtures("one_process")
def test_losses_and_needles_equal_those_of_a_training_forward_pass(saved: Path) -> None:
    results = measure(saved, LayoutConfig(), STREAM, CONFIG, seed=3)
    assert list(results["methods"]) == ["none", "dca", "dca+yarn", "ntk"]
    loaded = load(saved, LayoutConfig(), method(load(saved, LayoutConfig()).model, "none", trained=64, longest=192))
    rows = torch.from_numpy(STREAM[:965].reshape(5, 193))

    def losses(texts: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(texts.size(1) - 1).expand(len(texts), -1)
        with torch.no_grad():
            out: torch.Tensor = loaded.chunks[0](
                texts[:, :-1].contiguous(), positions, None, labels=texts[:, 1:].contiguous()
            )
        return out

    plain, expected = results["methods"]["none"], losses(rows).mean(dim=0)
    assert plain["loss_within"] == pytest.approx(expected[:64].mean().item(), rel=1e-5)
    assert plain["loss_past"] == pytest.approx(expected[64:].mean().item(), rel=1e-5)
    assert plain["loss_by_position"][-1]["loss"] == pytest.approx(expected[186:].mean().item(), rel=1e-5)
    assert results["methods"]["dca"]["loss_by_position"][0] == pytest.approx(plain["loss_by_position"][0], rel=1e-5)
    for cell, measured in zip(_cells(STREAM, CONFIG, 3), plain["needle"], strict=True):
        assert cell.texts.shape == (3, measured["length"])
        assert measured["nll"] == pytest.approx(losses(cell.texts)[:, -ANSWER:].mean().item(), rel=1e-4)
        assert measured["depth"] == cell.depth
    assert "<svg" in page({"a <b>": results})
    assert "a &lt;b&gt;" in page({"a <b>": results})
    assert summary(results["methods"])[1]["method"] == "dca"


@pytest.mark.usefixtures("one_process")
def test_a_needle_is_at_its_depth_and_repeated_at_the_end(saved: Path) -> None:
    first, last, absent = list(_cells(STREAM, CONFIG, 3))[:3]
    needle = first.texts[:, -16:]
    assert torch.equal(first.texts[:, :16], needle)
    assert torch.equal(last.texts[:, -32:-16], needle)
    assert torch.equal(absent.texts[:, -16:], needle)
    assert not (absent.texts[:, :16] == needle).all(dim=1).any()
    assert torch.equal(first.texts[:, 16:-16], last.texts[:, :-32])
    assert _cell(load(saved, LayoutConfig()), first)["exact"] == 0  # random weights


def test_the_table_gives_recall_at_each_length() -> None:
    cells = [
        {"length": length, "depth": depth, "recall": recall, "exact": 0.0, "nll": nll}
        for length, depth, recall, nll in ((64, 0.0, 1.0, 0.5), (64, None, 0.0, 7.0), (1024, 0.0, 0.5, 2.5), (1024, None, 0.0, 9.0))
    ]  # fmt: skip
    methods = {"none": {"loss_within": 3.0, "loss_past": 4.0, "needle": cells}}
    assert summary(methods) == [
        {"method": "none", "loss within": "3.000", "loss past": "4.000", "perplexity past": "54.6",
         "needle recall": "75%", "at 64": "100%", "at 1,024": "50%", "needle gain": "6.50"}
    ]  # fmt: skip


@pytest.mark.usefixtures("one_process")
def test_too_little_text_is_refused_in_one_line(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 150 tokens, but length 192 needs 193\. Measure shorter"):
        measure(saved, LayoutConfig(), STREAM[:150], CONFIG, seed=3)
