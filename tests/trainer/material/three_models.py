"""Write the material shared by the tests of merging, pruning and adapters: `python three_models.py FOLDER`.

`base`, and `one` and `two`, perturbed as if fine-tuned from it; `mixture` and `tuned_mixture`; `judge` and `other_judge`,
with scalar heads; `wide`, with another shape. All are tiny, over bytes, and without a tokenizer.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig

BASE = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    num_layers=4,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    rope_theta=10_000.0,
    init_std=0.2,
)
MIXTURE = replace(BASE, moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=24, shared_expert_ffn_hidden_size=16))
MODELS = {
    "base": (BASE, 0.0),
    "one": (BASE, 0.05),
    "two": (BASE, 0.1),
    "judge": (replace(BASE, head="scalar"), 0.05),
    "other_judge": (replace(BASE, head="scalar"), 0.1),
    "wide": (replace(BASE, ffn_hidden_size=64), 0.0),
    "mixture": (MIXTURE, 0.0),
    "tuned_mixture": (MIXTURE, 0.05),
}


def main(folder: Path) -> None:
    runtime.start(LayoutConfig(), seed=0)
    for name, (model, step) in MODELS.items():
        chunks = models.build(model, LayoutConfig(), seed=1)
        generator = torch.Generator().manual_seed(len(name) + int(100 * step))
        with torch.no_grad():
            for parameter in chunks[0].parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * step)
        checkpoint.save(
            folder / name,
            chunks,
            model=model,
            layout=LayoutConfig(),
            step=1,
            consumed_samples=8,
            seed=1,
            objective="next_token",
            tokenizer=None,
        )
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
