"""SmolLM2-135M's real weights are imported, match transformers' outputs, and are exported unchanged.

docs/families.md says how to make the folder that CUPOLA_SMOLLM2 names.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_
from cupola_trainer.generation.continuation import continue_text
from cupola_trainer.generation.loading import load
from cupola_trainer.generation.sampling import Sampling

FOLDER = os.environ.get("CUPOLA_SMOLLM2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="needs SmolLM2-135M's folder in CUPOLA_SMOLLM2: see docs/families.md"),
]
PROMPT = "Rain falls from clouds because"
PEAK = """
import sys, threading, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

most, before = [0], anonymous()
def watch():
    while True:
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
{"import": import_, "export": export}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
print(most[0] - before)
"""


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(FOLDER or "")


@pytest.fixture(scope="module")
def ours(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_(source, tmp_path_factory.mktemp("real") / "ours").path


def test_every_tensor_survives_a_round_trip_bit_for_bit(source: Path, ours: Path, tmp_path: Path) -> None:
    back = load_file(export(ours, tmp_path / "back") / "model.safetensors")
    original = load_file(source / "model.safetensors")
    assert set(back) == set(original) - {"lm_head.weight"}
    assert all(torch.equal(back[name], original[name]) for name in back)


@pytest.fixture(scope="module")
def logits(source: Path, ours: Path) -> dict[str, torch.Tensor]:
    """Logits of the prompt [1, s, v], ours and transformers', in fp32 and fp64."""
    theirs = AutoModelForCausalLM.from_pretrained(source).eval()
    tokens = torch.tensor([AutoTokenizer.from_pretrained(source).encode(PROMPT)])
    runtime.start(LayoutConfig(), seed=0)
    [model] = load(ours, LayoutConfig()).chunks
    places = torch.arange(tokens.size(1))[None]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        found = {"ours": model(tokens, places, None), "theirs": theirs(tokens).logits}
        patch.setattr(torch, "float32", torch.float64)  # LlamaRMSNorm casts to this dtype
        found |= {"ours64": model.double()(tokens, places, None), "theirs64": theirs.double()(tokens).logits}
    runtime.stop()
    return found


def test_float64_logits_match_transformers(logits: dict[str, torch.Tensor]) -> None:
    """Both compute the same function: they differ only by rounding, in any precision."""
    assert logits["ours64"].dtype == logits["theirs64"].dtype == torch.float64
    assert (logits["ours64"] - logits["theirs64"]).abs().max() <= 1e-9


def test_float32_logits_match_transformers_within_rounding(logits: dict[str, torch.Tensor]) -> None:
    """The largest logits are near 30, where adjacent fp32 numbers are 2e-6 apart, and thirty layers round:
    transformers' logits are as far from their fp64 values as ours. So the tolerance of 1e-5 is relative to the largest
    logit."""
    exact, scale = logits["theirs64"], logits["theirs64"].abs().max()
    assert (logits["ours"] - logits["theirs"]).abs().max() <= 1e-5 * scale
    ours, theirs = ((logits[name] - exact).abs().max() for name in ("ours", "theirs"))
    assert ours <= 2 * theirs


def test_greedy_text_matches_transformers(source: Path, ours: Path) -> None:
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    tokens = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.no_grad():
        text = theirs.generate(tokens, max_new_tokens=24, do_sample=False)[0, tokens.size(1) :]
    generated = continue_text(ours, PROMPT, Sampling(max_new_tokens=24, temperature=0.0))
    assert generated == tokenizer.decode(text, skip_special_tokens=True)


@pytest.mark.parametrize("direction", ["import", "export"])
def test_memory_holds_at_most_the_model_and_one_layer(source: Path, ours: Path, tmp_path: Path, direction: str) -> None:
    origin = source if direction == "import" else ours
    done = subprocess.run(
        [sys.executable, "-c", PEAK, direction, origin, tmp_path / "to"], capture_output=True, text=True, check=True
    )
    weights = load_file(source / "model.safetensors")
    model = sum(tensor.nbytes for tensor in weights.values())
    largest = max(tensor.nbytes for tensor in weights.values())  # the embedding; a decoder layer is smaller
    slack = 64 << 20  # Python, tokenizer and allocator, independent of model size
    assert int(done.stdout.split()[-1]) < model + largest + slack
