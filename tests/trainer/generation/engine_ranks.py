"""Run by test_engines.py under torchrun: responses of an engine given the weights of a model in two layouts.

engine_ranks.py SAVED OUTPUT.json     SAVED: folder of the fixture `saved`
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import LayoutConfig, OptimizerConfig, RolloutConfig
from cupola_trainer.generation.engine import engine_of
from cupola_trainer.generation.sampling import Sampling

sys.path.insert(0, str(Path(__file__).with_name("standins")))
LAYOUTS = {
    "dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "dense pp2": LayoutConfig(pp=2),
    "moe dp2 ep2": LayoutConfig(dp=2, ep=2),
    "moe tp2 sp": LayoutConfig(tp=2, sp=True),
}


def responses(saved: Path, name: str, layout: LayoutConfig) -> dict[str, list[Any]]:
    """Responses of both engines, with the weights as loaded and after an update."""
    folder = saved / name.split()[0]
    model = checkpoint.read_model(folder)
    chunks: Any = models.build(model, layout)
    checkpoint.load_weights(folder, chunks)
    chunks = optim.build(chunks, layout, OptimizerConfig(), 1).chunks  # wrapped, as in training
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    engines = {kind: engine_of(RolloutConfig(engine=kind), chunks, tokenizer, model) for kind in ("megatron", "vllm")}
    greedy = Sampling(max_new_tokens=12, temperature=0.0)
    prompts = [[5, 6, 7], [9] * 40, [11, 12], [400, 3], [77]]
    results: dict[str, list[Any]] = {kind: [] for kind in engines}
    for _ in range(2):
        for kind, engine in engines.items():
            results[kind].append([asdict(done) for done in engine.generate(prompts, greedy, seed=1)])
        with torch.no_grad():
            for chunk in chunks:
                for parameter in chunk.parameters():
                    parameter.mul_(1.3)
    return results


def main(saved: Path, output: Path) -> None:
    results = {}
    for name, layout in LAYOUTS.items():
        runtime.start(layout, seed=0)
        results[name] = responses(saved, name, layout)
    if runtime.rank() == 0:
        output.write_text(json.dumps(results))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
