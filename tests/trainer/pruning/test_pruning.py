"""Pruning: importance against transformers' activations, and the pruned model against one sliced in transformers."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import (
    BatchConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    NextTokenData,
    PruneJob,
    PruneTarget,
    TrainJob,
)
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.exporting import export
from cupola_trainer.jobs import prune
from cupola_trainer.jobs.prune import sequences
from cupola_trainer.pruning.choice import Kept, choose
from cupola_trainer.pruning.importance import Importance, measure
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.loop import train

MATERIAL = Path(__file__).parents[1] / "material"
DENSE = PruneTarget(num_layers=3, hidden_size=24, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=20)
MIXTURE = PruneTarget(num_attention_heads=2, num_experts=3, expert_ffn_hidden_size=12, shared_expert_ffn_hidden_size=8)
LENGTH = 32


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    subprocess.run([sys.executable, MATERIAL / "three_models.py", folder], check=True)
    return folder


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    runtime.stop()


def job_of(parent: Path, tokens: Path, output: Path, to: PruneTarget) -> PruneJob:
    return PruneJob(parent=parent, output=output, tokens=tokens, to=to, max_tokens=512, sequence_length=LENGTH)


def measured(job: PruneJob) -> tuple[ModelConfig, Importance]:
    runtime.start(LayoutConfig(), seed=0)
    model = checkpoint.read_model(job.parent)
    [chunk] = models.build(model, LayoutConfig(), seed=None)
    checkpoint.load_weights(job.parent, [chunk])
    return model, measure(model, chunk, sequences(job, LENGTH))


def test_importance_agrees_with_transformers_activations(saved: Path, tokens_folder: Path, tmp_path: Path) -> None:
    job = job_of(saved / "base", tokens_folder, tmp_path / "job", DENSE)
    model, ours = measured(job)
    theirs = AutoModelForCausalLM.from_pretrained(export(saved / "base", tmp_path / "hf")).eval()
    seen: dict[str, Tensor] = {}

    def look(name: str, value: Tensor) -> None:
        seen[name] = seen.get(name, torch.zeros(())) + value.detach().double()

    for i, layer in enumerate(theirs.model.layers):
        layer.register_forward_hook(
            lambda _, args, output, i=i: look(
                f"layer {i}", (1 - torch.cosine_similarity(args[0].double(), output.double(), dim=-1)).sum()
            )
        )
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=i: look(f"ffn {i}", args[0].abs().sum((0, 1))))
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, i=i: look(f"heads {i}", args[0].unflatten(-1, (4, 8)).norm(dim=-1).sum((0, 1)))
        )
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_hook(lambda _, args, output: look("hidden", output.abs().sum((0, 1))))
    theirs.model.norm.register_forward_hook(lambda _, args, output: look("hidden", output.abs().sum((0, 1))))
    tokens = torch.cat(sequences(job, LENGTH))
    with torch.no_grad():
        theirs(tokens)
    for i in range(model.num_layers):
        torch.testing.assert_close(ours.layers[i], seen[f"layer {i}"] / tokens.numel(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.ffn[i], seen[f"ffn {i}"] / tokens.numel(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.heads[i], seen[f"heads {i}"] / tokens.numel(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.hidden, seen["hidden"] / tokens.numel(), rtol=1e-4, atol=1e-6)


def sliced(folder: Path, to: Path, model: ModelConfig, small: ModelConfig, kept: Kept) -> Path:
    """The pruned model in transformers' format, sliced from the larger model's tensors."""
    to.mkdir()
    size = model.head_size
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else -1
        if layer >= 0 and layer not in kept.layers:
            continue
        parts[2] = str(kept.layers.index(layer)) if layer >= 0 else parts[2]
        expert = int(parts[5]) if "experts" in parts else -1
        if expert >= 0:
            left = kept.experts[layer].tolist() if kept.experts else list(range(4))
            if expert not in left:
                continue
            parts[5] = str(left.index(expert))
        if kept.groups and kept.heads and "self_attn" in parts:
            per_group = model.num_attention_heads // model.num_query_groups
            groups = kept.groups[layer].tolist()
            queries = [
                g * per_group + h for g, heads in zip(groups, kept.heads[layer].tolist(), strict=True) for h in heads
            ]
            heads = queries if parts[4] in ("q_proj", "o_proj") else groups
            rows = torch.tensor([head * size + i for head in heads for i in range(size)])
            tensor = tensor[:, rows] if parts[4] == "o_proj" else tensor[rows]
        units = None
        if parts[-2] in ("gate_proj", "up_proj", "down_proj"):
            of = kept.expert_ffn[layer][expert] if kept.expert_ffn and expert >= 0 else None
            units = of if expert >= 0 else (kept.ffn[layer] if kept.ffn else None)
        if units is not None:
            tensor = tensor[:, units] if parts[-2] == "down_proj" else tensor[units]
        if kept.experts and name.endswith("mlp.gate.weight"):
            tensor = tensor[kept.experts[layer]]
        if kept.hidden is not None and not name.endswith(".bias"):
            writes = parts[-2] in ("o_proj", "down_proj") or tensor.dim() == 1
            tensor = tensor[kept.hidden] if writes else tensor[:, kept.hidden]
        made[".".join(parts)] = tensor.contiguous()
    save_file(made, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "num_hidden_layers": small.num_layers,
        "hidden_size": small.hidden_size,
        "intermediate_size": small.ffn_hidden_size,
        "num_attention_heads": small.num_attention_heads,
        "num_key_value_heads": small.num_query_groups,
        "head_dim": size,
        "layer_types": config["layer_types"][: small.num_layers],
    }
    if small.moe:
        config |= {
            "num_experts": small.moe.num_experts,
            "moe_intermediate_size": small.moe.expert_ffn_hidden_size,
            "shared_expert_intermediate_size": small.moe.shared_expert_ffn_hidden_size,
        }
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(("name", "target"), [("base", DENSE), ("mixture", MIXTURE)], ids=["dense", "mixture"])
def test_the_pruned_model_has_the_same_logits_as_the_sliced_one(
    saved: Path, tokens_folder: Path, tmp_path: Path, name: str, target: PruneTarget
) -> None:
    job = job_of(saved / name, tokens_folder, tmp_path / "job", target)
    model, importance = measured(job)
    kept = choose(model, target, importance)
    prune.run(job)
    small = checkpoint.read_model(tmp_path / "job" / "checkpoint")
    assert small == target.shape(model)
    reference = sliced(export(saved / name, tmp_path / "hf"), tmp_path / "sliced", model, small, kept)
    theirs = AutoModelForCausalLM.from_pretrained(reference).eval()
    exported = AutoModelForCausalLM.from_pretrained(export(tmp_path / "job" / "checkpoint", tmp_path / "out")).eval()
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(small, LayoutConfig(), seed=None)
    checkpoint.load_weights(tmp_path / "job" / "checkpoint", [chunk])
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = theirs(tokens).logits
        torch.testing.assert_close(exported(tokens).logits, wanted, rtol=0, atol=1e-5)
        ours = chunk.eval()(tokens, torch.arange(24).expand_as(tokens), None)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    assert wanted.abs().max() > 0.5
    metrics = json.loads((tmp_path / "job" / "result.json").read_text())["metrics"]
    assert metrics["parameters"] == parameter_count(small) < metrics["parameters_before"]


def test_named_layers_are_dropped_without_tokens_and_training_continues(
    saved: Path, tokens_folder: Path, tmp_path: Path
) -> None:
    prune.run(PruneJob(parent=saved / "base", output=tmp_path / "job", to=PruneTarget(drop_layers=(1, 2))))
    made = tmp_path / "job" / "checkpoint"
    assert checkpoint.read_training(made)["pruning"]["kept_layers"] == [0, 3]
    job = TrainJob(
        output=tmp_path / "train",
        parent=made,
        steps=2,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=2),
        data=NextTokenData(tokens=tokens_folder),
    )
    assert train(job, lambda: False)
    losses = [line["loss"] for line in read_metrics(tmp_path / "train" / "metrics.jsonl") if line["event"] == "step"]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


def test_attention_windows_stay_with_their_layers() -> None:
    model = replace(MODEL, attention_windows=(8, None))
    assert PruneTarget(drop_layers=(1,)).shape(model, (0, 2, 3)).attention_windows == (8, 8, None)


MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=4,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
)
MIXED = replace(MODEL, moe=MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=24))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: PruneTarget(ffn_hidden_size=64).shape(MODEL), "ffn_hidden_size=64, but the model has 48"),
        (lambda: PruneTarget(drop_layers=(4,)).shape(MODEL), "drop_layers: 4 is not one of the model's layers, 0 to 3"),
        (lambda: PruneTarget(drop_layers=(0, 1, 2, 3)).shape(MODEL), "drop_layers names all 4 layers of the model"),
        (lambda: PruneTarget(num_experts=2).shape(MODEL), "num_experts=2, but the model is dense"),
        (lambda: PruneTarget(num_experts=1).shape(MIXED), "num_experts=1, but each token visits 2. Keep at least 2."),
        (lambda: PruneTarget(num_query_groups=1).shape(MODEL), "Try num_attention_heads=2"),
        (lambda: PruneTarget(num_attention_heads=3).shape(MODEL), "num_attention_heads=3 is not a multiple of"),
    ],
)
def test_invalid_sizes_are_refused_in_one_line(make: Callable[[], Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert line in str(error.value)


def test_an_empty_target_or_one_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    for target, line in {PruneTarget(): "nothing to prune", PruneTarget(num_layers=2): "give `tokens`"}.items():
        with pytest.raises(ValidationError, match=line):
            PruneJob(parent=tmp_path, output=tmp_path, to=target)
