"""LoRA: against PEFT, folded into the weights, across a resume, and what cannot be adapted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    LayoutConfig,
    LoraConfig,
    MergeAdapterJob,
    ModelConfig,
    MoEConfig,
    NextTokenData,
    OnlineMergingConfig,
    OptimizerConfig,
    TrainJob,
)
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.exporting import export
from cupola_trainer.jobs import merge_adapter
from cupola_trainer.lora import attaching
from cupola_trainer.lora.exporting import export_adapter
from cupola_trainer.training.loop import train

MATERIAL = Path(__file__).parents[1] / "material"
EVERYTHING = LoraConfig(rank=4, alpha=6, targets=("attention", "mlp", "experts"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    subprocess.run([sys.executable, MATERIAL / "three_models.py", folder], check=True)
    return folder


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    runtime.stop()


def adapted(base: Path, config: LoraConfig, to: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Save non-zero adapters, and return the logits of the model with them."""
    runtime.start(LayoutConfig(), seed=0)
    model = checkpoint.read_model(base)
    chunks = models.build(model, LayoutConfig(), seed=None)
    checkpoint.load_weights(base, chunks)
    attaching.attach(chunks, config, model, LayoutConfig(), seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in chunks[0].parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        logits: torch.Tensor = chunks[0].eval()(tokens, torch.arange(tokens.size(1)).expand_as(tokens), None)
    checkpoint.save(
        to, chunks, model=model, layout=LayoutConfig(), step=0, consumed_samples=0, seed=0, objective="sft",
        tokenizer=None, extra={"adapter": attaching.describe(base, config)},
    )  # fmt: skip
    return logits


@pytest.mark.parametrize(
    ("name", "config"),
    [("base", LoraConfig(rank=4, alpha=6)), ("mixture", EVERYTHING)],
    ids=["dense", "mixture"],
)
def test_peft_and_the_folded_model_have_the_same_logits_as_the_adapted_model(
    saved: Path, tmp_path: Path, name: str, config: LoraConfig
) -> None:
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))
    ours = adapted(saved / name, config, tmp_path / "adapter", tokens)
    base = AutoModelForCausalLM.from_pretrained(export(saved / name, tmp_path / "hf")).eval()
    with torch.no_grad():
        assert (base(tokens).logits - ours).abs().max() > 0.1
        folder = export_adapter(tmp_path / "adapter", tmp_path / "peft")
        theirs = PeftModel.from_pretrained(base, folder).eval()
        torch.testing.assert_close(theirs(tokens).logits, ours, rtol=0, atol=1e-5)
    merge_adapter.run(MergeAdapterJob(parent=saved / name, adapter=tmp_path / "adapter", output=tmp_path / "folded"))
    whole = AutoModelForCausalLM.from_pretrained(export(tmp_path / "folded" / "checkpoint", tmp_path / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, ours, rtol=0, atol=5e-5)  # W + BA is rounded again


def job_of(saved: Path, tokens_folder: Path, output: Path) -> TrainJob:
    return TrainJob(
        output=output,
        parent=saved / "mixture",
        steps=4,
        lora=EVERYTHING,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=2),
        data=NextTokenData(tokens=tokens_folder),
        checkpoint=CheckpointConfig(every=2),
    )


def test_only_adapters_are_trained_and_saved_and_a_resume_is_bitwise(
    saved: Path, tokens_folder: Path, tmp_path: Path
) -> None:
    job = job_of(saved, tokens_folder, tmp_path / "whole")
    assert train(job, lambda: False)
    folder = job.output / "checkpoints" / "step_00000004"
    whole = StoredTensors(folder)
    assert {key.rpartition(".")[2] for key in whole} == {"lora_a", "lora_b"}
    assert {key.partition(".decoder")[0] for key in StoredState(folder / "optimizer").boxes} == {
        "optimizer.exp_avg",
        "optimizer.exp_avg_sq",
    }
    adapter = checkpoint.read_training(folder)["adapter"]
    assert adapter["base"] == artifacts.read(saved / "mixture").digest
    assert any(whole[key].abs().max() > 0 for key in whole if key.endswith("lora_b"))

    terminated = iter([False, False, False, True])
    broken = job.but(output=tmp_path / "broken")
    assert not train(broken, lambda: next(terminated))
    with pytest.raises(ConfigError, match=r"lora\.alpha=7.0, but the checkpoint at step 3 has 6\.0"):
        train(broken.but(lora=replace(EVERYTHING, alpha=7)), lambda: False)
    assert train(broken, lambda: False)
    resumed = StoredTensors(broken.output / "checkpoints" / "step_00000004")
    assert set(whole) == set(resumed)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_adapters_are_not_a_model_and_need_their_own_base(saved: Path, tmp_path: Path) -> None:
    tokens = torch.zeros(1, 8, dtype=torch.long)
    adapted(saved / "base", LoraConfig(), tmp_path / "adapter", tokens)
    chunks = models.build(checkpoint.read_model(saved / "base"), LayoutConfig())
    with pytest.raises(ConfigError, match="holds only adapters"):
        checkpoint.load_weights(tmp_path / "adapter", chunks)
    with pytest.raises(ConfigError, match="Give the base it was trained on"):
        merge_adapter.run(MergeAdapterJob(parent=saved / "one", adapter=tmp_path / "adapter", output=tmp_path / "no"))
    with pytest.raises(ConfigError, match="holds a full model, not an adapter"):
        export_adapter(saved / "one", tmp_path / "no")


MOE = MoEConfig(num_experts=4, expert_ffn_hidden_size=24)
DENSE = ModelConfig(vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2,
                    ffn_hidden_size=48, max_position_embeddings=64)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model", "layout", "line"),
    [
        (EVERYTHING, DENSE, {}, "experts, but the model is dense"),
        (LoraConfig(targets=("mlp",)), replace(DENSE, moe=MOE), {}, "only routed experts"),
        (EVERYTHING, replace(DENSE, moe=MOE), {"tp": 2, "sp": True}, "experts with etp=2"),
        (
            LoraConfig(),
            replace(DENSE, moe=replace(MOE, balancing="bias", score_function="sigmoid")),
            {},
            "balancing=bias",
        ),
    ],
)
def test_unsupported_targets_are_refused_in_one_line(
    config: LoraConfig, model: ModelConfig, layout: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        config.check(model, LayoutConfig(**layout))


def test_the_exported_config_names_every_module(saved: Path, tmp_path: Path) -> None:
    adapted(saved / "mixture", EVERYTHING, tmp_path / "adapter", torch.zeros(1, 8, dtype=torch.long))
    folder = export_adapter(tmp_path / "adapter", tmp_path / "peft", base_model="our/base")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "our/base"
    assert (config["r"], config["lora_alpha"]) == (4, 6.0)
    assert "model.layers.3.mlp.shared_expert.up_proj" in config["target_modules"]
    assert config["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def test_online_merging_with_adapters_is_refused(saved: Path) -> None:
    runtime.start(LayoutConfig(), seed=0)
    model = checkpoint.read_model(saved / "base")
    chunks = models.build(model, LayoutConfig())
    attaching.attach(chunks, LoraConfig(), model, LayoutConfig(), seed=0)
    trainee = optim.build(chunks, LayoutConfig(), OptimizerConfig(), 1)
    merging = OnlineMergingConfig(alpha=0.1, density=0.5, base=saved / "base")
    with pytest.raises(ConfigError, match="merging has no use with lora"):
        optim.merge_online(trainee, merging, saved / "one", model, 0)
