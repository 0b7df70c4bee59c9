"""Precisions that a device lacks are refused in one line. The devices are simulated: this asks what they would answer."""

import sys
import types
from typing import Any

import pytest
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, Fp8Config, LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.config.memory import forecast
from cupola_trainer.config.precision_rules import check_memory
from cupola_trainer.runtime import precision


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def answer(monkeypatch: pytest.MonkeyPatch, **reasons: str) -> None:
    """Transformer Engine that answers why a recipe is not available; empty if it is."""

    def asked(name: str) -> Any:
        return classmethod(lambda cls: (not reasons.get(name), reasons.get(name, "")))

    names = ("is_fp8_available", "is_fp8_block_scaling_available", "is_mxfp8_available")
    module: Any = types.ModuleType("transformer_engine.pytorch.fp8")
    module.FP8GlobalStateManager = type("Manager", (), {name: asked(name) for name in names})
    for package in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_fp8_on_a_cpu_is_refused_and_other_precisions_are_not() -> None:
    with pytest.raises(
        ConfigError, match=r"^precision=fp8 needs a GPU, and this machine has none. Use precision=bf16.$"
    ):
        precision.check_device("fp8", Fp8Config(), LayoutConfig())
    for other in ("auto", "fp32", "bf16"):
        precision.check_device(other, Fp8Config(), LayoutConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["auto", "bf16", "fp8"])
def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    pretend(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(ConfigError, match=rf"precision={asked} needs .* Tesla T4 \(compute capability 7.5\) does not"):
        precision.check_precision(asked, Fp8Config())
    precision.check_precision("fp32", Fp8Config())


def test_fp8_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA A100-SXM4-80GB", (8, 0))
    with pytest.raises(
        ConfigError, match=r"A100-SXM4-80GB \(compute capability 8.0\): FP8 needs compute capability 8.9"
    ):
        precision.check_precision("fp8", Fp8Config())
    precision.check_precision("bf16", Fp8Config())


def test_fp8_without_transformer_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA H200", (9, 0))
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: False)
    with pytest.raises(ConfigError, match=r"FP8 needs Transformer Engine, which is not installed\. Install it"):
        precision.check_precision("fp8", Fp8Config())


def test_a_recipe_that_the_gpu_lacks_is_refused_with_transformer_engines_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "NVIDIA H200", (9, 0))
    answer(monkeypatch, is_mxfp8_available="Device compute capability 10.0 or higher required for MXFP8 execution.")
    line = r"fp8.recipe=mxfp8 on NVIDIA H200 .* answers: Device compute capability 10.0 .* Use another fp8.recipe"
    with pytest.raises(ConfigError, match=line):
        precision.check_precision("fp8", Fp8Config(recipe="mxfp8"))
    for recipe in ("delayed", "current", "block"):
        precision.check_precision("fp8", Fp8Config(recipe=recipe))  # type: ignore[arg-type]


def test_weights_and_passes_without_gradient_are_bf16_in_an_fp8_run() -> None:
    assert runtime.dtype("fp8") is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["offload_optimizer", "offload_activations"])
def test_offloading_on_a_cpu_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^layout.{name}=true needs a GPU to offload from, and this machine has none"
    ):
        precision.check_device("auto", Fp8Config(), LayoutConfig(**{name: True}))  # type: ignore[arg-type]
    precision.check_device("auto", Fp8Config(), LayoutConfig())


def test_offloading_activations_without_transformer_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA H200", (9, 0))
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: False)
    with pytest.raises(ConfigError, match="offload_activations=true needs Transformer Engine, which is not installed"):
        precision.check_device("auto", Fp8Config(), LayoutConfig(offload_activations=True))
    precision.check_device("auto", Fp8Config(), LayoutConfig(offload_optimizer=True))


QWEN = ModelConfig(
    vocab_size=152_064, hidden_size=3584, num_layers=28, num_attention_heads=28, num_query_groups=4,
    ffn_hidden_size=18_944, max_position_embeddings=1 << 20, tie_embeddings=False,
)  # fmt: skip
EIGHT = LayoutConfig(tp=4, sp=True, dp=2)


def test_a_length_that_no_rank_can_hold_is_refused_with_the_forecasts_numbers() -> None:
    held = 80.0 * 2**30
    batch = BatchConfig(sequence_length=1 << 20, micro_batch_size=1)
    line = (
        r"= 1,048,576 tokens need about 1,1\d\d\.\d GiB a rank, 21\.\d GiB of it for weights, gradients and optimizer, and "
        r"a rank has 80\.0 GiB\. About 5\d,\d{3} tokens a micro-batch fit\. Shorten the sequences"
    )
    with pytest.raises(ConfigError, match=line):
        check_memory(forecast(QWEN, EIGHT, batch, OptimizerConfig(), 2), held)
    shorter = BatchConfig(sequence_length=32_768, micro_batch_size=1)
    check_memory(forecast(QWEN, EIGHT, shorter, OptimizerConfig(), 2), held)
    with pytest.raises(ConfigError, match="Not even the model fits"):
        check_memory(forecast(QWEN, LayoutConfig(), batch, OptimizerConfig(), 2), held)
