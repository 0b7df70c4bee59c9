"""In fp64, where rounding hides nothing, every family computes transformers' logits."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.conversion.exporting import export

NAMES = list(runpy.run_path(str(Path(__file__).parent.parent / "material" / "saved_models.py"))["MODELS"])


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def norms_in_fp64(model: Any) -> None:
    """Replace norms that round to fp32 whatever the dtype. Gemma's do so in our model too."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and "Gemma" not in type(module).__name__:
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight.data.copy_(module.weight)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, norm)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers_in_double_precision(saved: Path, tmp_path: Path, name: str) -> None:
    described = checkpoint.read_model(saved / name)
    [ours] = models.build(described, LayoutConfig(), seed=None, dtype=torch.float64)
    checkpoint.load_weights(saved / name, [ours])
    folder = export(saved / name, tmp_path / name)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()
    norms_in_fp64(theirs)
    tokens = torch.randint(0, 512, (2, 100), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = ours(tokens, torch.arange(100).expand_as(tokens), None)
        expected = theirs(tokens).logits
    assert logits.dtype == expected.dtype == torch.float64
    # transformers keeps two things in fp32: router probabilities and YaRN's factor on queries and keys
    rounded = described.moe is not None or name == "yarn"
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6 if rounded else 1e-9)
