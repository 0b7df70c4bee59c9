"""Run by test_saves.py under torchrun: saves a checkpoint in each layout of this number of ranks.

plan_ranks.py FOLDER
"""

import sys
from pathlib import Path
from typing import Literal

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import LayoutConfig, OptimizerConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import layout_ranks as layouts  # type: ignore[import-not-found]

LAYOUTS = {
    "dense one process": LayoutConfig(),
    "bf16_moe one process": LayoutConfig(),
    "bf16_states one process": LayoutConfig(),
    "dense dp2": LayoutConfig(dp=2),
    "dense dp2 overlap": LayoutConfig(dp=2, overlap=True),
    "dense tp2": LayoutConfig(tp=2),
    "dense pp2": LayoutConfig(pp=2),
    "dense pp2 vp2": LayoutConfig(pp=2, vp=2),
    "bf16 dp2": LayoutConfig(dp=2),
    "dense dp2 whole optimizer": LayoutConfig(dp=2, distributed_optimizer=False),
    "bf16 dp2 whole optimizer": LayoutConfig(dp=2, distributed_optimizer=False),
    "bf16 cp2": LayoutConfig(cp=2),
    "qk_norm tp2": LayoutConfig(tp=2),
    "olmo2 tp2": LayoutConfig(tp=2),
    "scalar_moe pp2": LayoutConfig(pp=2),
    "moe ep2": LayoutConfig(dp=2, ep=2),
    "moe dp2": LayoutConfig(dp=2),
    "moe tp2 sp": LayoutConfig(tp=2, sp=True),
    "moe tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "bias tp2 sp etp1": LayoutConfig(tp=2, sp=True, etp=1),
    "bf16_moe ep2": LayoutConfig(dp=2, ep=2),
    "moe dp4 ep2": LayoutConfig(dp=4, ep=2),
    "moe dp4 ep2 etp2": LayoutConfig(dp=4, ep=2, etp=2),
    "moe dp4 ep4": LayoutConfig(dp=4, ep=4),
    "bf16_moe tp2 sp dp2 ep2": LayoutConfig(tp=2, sp=True, dp=2, ep=2),
    "moe tp2 sp pp2 ep2": LayoutConfig(tp=2, sp=True, pp=2, ep=2),
    "moe tp2 sp dp2": LayoutConfig(tp=2, sp=True, dp=2),
    "dense tp4": LayoutConfig(tp=4),
    "dense pp2 dp2": LayoutConfig(pp=2, dp=2),
    "dense tp2 pp2 vp2": LayoutConfig(tp=2, pp=2, vp=2),
}


def precision_of(name: str) -> str:
    return "bf16" if name.startswith("bf16") else "fp32"


def moments_of(name: str) -> Literal["fp32", "bf16"]:
    return "bf16" if "states" in name else "fp32"


def save_all(folder: Path) -> None:
    here = {name: layout for name, layout in LAYOUTS.items() if layout.world_size == runtime.world_size()}
    for name, layout in sorted(here.items(), key=lambda item: str(item[1])):  # equal layouts share their groups
        runtime.start(layout, seed=0)
        model = layouts.MODELS[name.split()[0].removesuffix("_states")]
        chunks = models.build(model, layout, dtype=runtime.dtype(precision_of(name)))
        trainee = optim.build(chunks, layout, OptimizerConfig(states=moments_of(name)), 8)
        checkpoint.save(
            folder / name, trainee.chunks, model=model, layout=layout, step=1, consumed_samples=1, seed=0,
            objective="next_token", tokenizer=None, optimizer=trainee.optimizer, scheduler=trainee.scheduler,
        )  # fmt: skip
    runtime.stop()


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
