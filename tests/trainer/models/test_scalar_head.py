"""Scalar heads: against transformers' sequence classification, and on a language model's weights."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, SftData, TrainJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_
from cupola_trainer.forward import outputs
from cupola_trainer.generation.loading import load
from cupola_trainer.training.loop import begin

NAMES = ["dense", "untied", "moe", "llama", "gemma2"]
ONE = LayoutConfig()


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(ONE, seed=0)
    yield
    runtime.stop()


def scalar_of(language_model: Path, to: Path) -> list[Any]:
    """Save a scalar head on a language model's weights."""
    model = replace(checkpoint.read_model(language_model), head="scalar")
    chunks = models.build(model, ONE, seed=7)
    checkpoint.load_weights(language_model, chunks)
    checkpoint.save(
        to, chunks, model=model, layout=ONE, step=1, consumed_samples=8, seed=7, objective="reward",
        tokenizer=language_model / "tokenizer",
    )  # fmt: skip
    return chunks


def batch_of(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "tokens": tokens,
        "labels": tokens,
        "loss_mask": torch.ones(tokens.shape),
        "position_ids": torch.arange(tokens.size(1)).expand_as(tokens).contiguous(),
    }


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_reward_model_has_the_same_values_in_transformers(saved: Path, tmp_path: Path, name: str) -> None:
    chunks = scalar_of(saved / name, tmp_path / "ours")
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(5))
    values = outputs.values(chunks, batch_of(tokens))
    theirs = AutoModelForSequenceClassification.from_pretrained(export(tmp_path / "ours", tmp_path / "out")).eval()
    with torch.no_grad():
        expected = theirs.score(theirs.model(tokens).last_hidden_state)[..., 0]
    assert values.abs().max() > 0.05
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_model_survives_export_and_import(saved: Path, tmp_path: Path, name: str) -> None:
    runtime.start(ONE, seed=0)
    scalar_of(saved / name, tmp_path / "ours")
    runtime.stop()
    first = export(tmp_path / "ours", tmp_path / "first")
    import_(first, tmp_path / "again")
    assert checkpoint.read_model(tmp_path / "again").is_scalar
    second = export(tmp_path / "again", tmp_path / "second")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert ours["score.weight"].shape == (1, 64)
    assert "lm_head.weight" not in ours
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("one_process")
def test_only_the_head_is_new_on_a_language_models_weights(saved: Path, tmp_path: Path) -> None:
    [chunk] = scalar_of(saved / "untied", tmp_path / "ours")
    [before] = models.build(checkpoint.read_model(saved / "untied"), ONE, seed=None)
    checkpoint.load_weights(saved / "untied", [before])
    weights, old = dict(chunk.named_parameters()), dict(before.named_parameters())
    assert weights.keys() == old.keys()
    assert [name for name in weights if not torch.equal(weights[name], old[name])] == ["output_layer.weight"]
    assert weights["output_layer.weight"].shape == (1, 64)
    assert weights["output_layer.weight"].std().item() == pytest.approx(0.02, rel=0.3)
    again = models.build(checkpoint.read_model(tmp_path / "ours"), ONE, seed=None)
    checkpoint.load_weights(tmp_path / "ours", again)
    assert torch.equal(again[0].output_layer.weight, weights["output_layer.weight"])
    assert parameter_count(checkpoint.read_model(tmp_path / "ours")) == sum(p.numel() for p in weights.values())


@pytest.mark.usefixtures("one_process")
def test_a_reward_model_cannot_generate_or_become_a_language_model(saved: Path, tmp_path: Path) -> None:
    scalar_of(saved / "dense", tmp_path / "ours")
    with pytest.raises(ConfigError, match="is a reward model"):
        load(tmp_path / "ours", ONE)
    job = TrainJob(
        output=tmp_path / "job",
        parent=tmp_path / "ours",
        steps=1,
        batch=BatchConfig(sequence_length=32, micro_batch_size=1, global_batch_size=1),
        data=SftData(conversations=tmp_path),
    )
    with pytest.raises(ConfigError, match="has no language-model head"):
        begin(job)


def test_a_classifier_of_several_labels_is_refused(saved: Path, tmp_path: Path) -> None:
    runtime.start(ONE, seed=0)
    scalar_of(saved / "dense", tmp_path / "ours")
    runtime.stop()
    folder = export(tmp_path / "ours", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good", "2": "best"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="ForSequenceClassification with 3 labels is not supported"):
        import_(folder, tmp_path / "again")
