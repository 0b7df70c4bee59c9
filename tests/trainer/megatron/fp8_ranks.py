"""Run by test_fp8.py under torchrun, with the stand-in for Transformer Engine on the path.

fp8_ranks.py FOLDER    trains in FP8, writes FOLDER/RECIPE-RANKS (checkpoints) and FOLDER/RANKS.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tests.trainer.training.layout_ranks import MODELS, OPTIMIZER, STEPS, batches_of, objective_of

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.scales import scale_shards
from cupola_trainer.config import Fp8Config, LayoutConfig
from cupola_trainer.forward import outputs
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.objectives import passes
from cupola_trainer.optim import Trainee

RECIPES = ("current", "delayed", "block", "mxfp8")
HALF = STEPS // 2
LAYOUTS = {
    "dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "dense dp2": LayoutConfig(dp=2),
    "dense pp2": LayoutConfig(pp=2),
    "packed cp2": LayoutConfig(cp=2),
    "moe dp2 ep2": LayoutConfig(dp=2, ep=2),
    "moe dp2 ep2 full recompute": LayoutConfig(dp=2, ep=2, recompute="full"),
}


def build(name: str, layout: LayoutConfig, recipe: str | None) -> Trainee:
    runtime.start(layout, seed=0)
    fp8 = Fp8Config(recipe=recipe) if recipe else None  # type: ignore[arg-type]
    chunks = models.build(MODELS[name], layout, seed=5, dtype=torch.bfloat16, fp8=fp8)
    return optim.build(chunks, layout, OPTIMIZER, STEPS)


def step(trainee: Trainee, name: str, number: int) -> list[float]:
    """Loss and gradient norm."""
    objective = objective_of(name)
    means = passes.train(trainee.chunks, objective, batches_of(objective, number))
    trainee.scheduler.step(increment=1)
    return [means["loss"], trainee.update()[0]]


def trained(name: str, layout: LayoutConfig, recipe: str | None) -> list[list[float]]:
    trainee = build(name, layout, recipe)
    return [step(trainee, name, number) for number in range(STEPS)]


def rounded(trainee: Trainee) -> dict[str, int]:
    """How many operands each linear layer rounded to FP8."""
    modules = ((name, module) for chunk in trainee.chunks for name, module in chunk.named_modules())
    return {name.removeprefix("module.module."): getattr(module, "rounded", 0) for name, module in modules
            if hasattr(module, "fuse_wgrad_accumulation")}  # fmt: skip


def layers_in_fp8(name: str, recipe: str) -> list[int]:
    trainee = build(name, LayoutConfig(), recipe)
    step(trainee, name, 0)
    return sorted({int(path.split(".")[2]) for path, count in rounded(trainee).items() if count})


def interrupted(name: str, recipe: str) -> dict[str, Any]:
    """A run with evaluations, forward passes and generation between its steps: its numbers, and what they rounded."""
    trainee = build(name, LayoutConfig(), recipe)
    found: dict[str, Any] = {"steps": [], "rounded": []}
    for number in range(STEPS):
        found["steps"].append(step(trainee, name, number))
        before = sum(rounded(trainee).values())
        objective = objective_of(name)
        batches = batches_of(objective, 9)
        found["evaluated"] = passes.evaluate(trainee.chunks, objective, batches)["loss"]
        whole = objective.collate([objective.sample(number)])
        outputs.token_losses(trainee.chunks, whole)
        generate(trainee.chunks, None, [[5, 6, 7], [9] * 5], Sampling(max_new_tokens=3, temperature=0.0), stops=[],
                 vocabulary=128)  # fmt: skip
        found["rounded"].append(sum(rounded(trainee).values()) - before)
    plain = build(name, LayoutConfig(), None)
    for weight, other in zip(plain.chunks[0].parameters(), trainee.chunks[0].parameters(), strict=True):
        weight.data.copy_(other.data)
    found["evaluated in bf16"] = passes.evaluate(plain.chunks, objective_of(name), batches_of(objective_of(name), 9))[
        "loss"
    ]
    return found


def resumed(folder: Path, name: str, recipe: str) -> list[list[float]]:
    """The second half of the steps, from a checkpoint after the first."""
    layout = LayoutConfig()
    trainee = build(name, layout, recipe)
    for number in range(HALF):
        step(trainee, name, number)
    checkpoint.save(
        folder, trainee.chunks, model=MODELS[name], layout=layout, step=HALF, consumed_samples=0, seed=0,
        objective="masked_words", tokenizer=None, optimizer=trainee.optimizer, scheduler=trainee.scheduler,
    )  # fmt: skip
    trainee = build(name, layout, recipe)
    checkpoint.load_training(folder, trainee.chunks, trainee.optimizer, trainee.scheduler)
    return [step(trainee, name, number) for number in range(HALF, STEPS)]


def stale_weights(name: str) -> list[str]:
    """Linear layers whose FP8 weight is not that of the weight that the last step computed with."""
    from transformer_engine.pytorch import products

    trainee = build(name, LayoutConfig(), "current")
    for number in range(HALF):
        weights = {path: each.detach().clone() for path, each in trainee.chunks[0].named_parameters()}
        step(trainee, name, number)
    stale = []
    for path, module in trainee.chunks[0].named_modules():
        for index, kept in getattr(module, "workspaces", {}).items():
            weight = weights[f"{path}.weight{index}" if hasattr(module, "num_gemms") else f"{path}.weight"]
            options: Any = {"forward": True, "weight": True, "scales": None, "index": 0}
            if not torch.equal(kept, products.rounded(weight, module.fp8_meta["recipe"], **options)):
                stale.append(path)
    return stale


def main(folder: Path) -> None:
    ranks = runtime.world_size()
    found: dict[str, Any] = {}
    if ranks == 1:
        for name in ("dense", "moe", "packed"):
            for recipe in (None, *RECIPES):
                found[f"{name} {recipe}"] = trained(name, LayoutConfig(), recipe)
        found["recomputed"] = trained("moe", LayoutConfig(recompute="full"), "current")
        found["layers"] = {recipe: layers_in_fp8("moe", recipe) for recipe in RECIPES}
        found["interrupted"] = {recipe: interrupted("moe", recipe) for recipe in ("current", "delayed")}
        found["resumed"] = {recipe: resumed(folder / recipe, "moe", recipe) for recipe in RECIPES}
        found["stale"] = stale_weights("moe")
    else:
        for name, layout in LAYOUTS.items():
            found[name] = trained(name.split()[0], layout, "current")
        trainee = build("dense", LayoutConfig(dp=2), "delayed")
        found["delayed dp2"] = [step(trainee, "dense", number) for number in range(STEPS)]
        scales: list[Any] = [None] * ranks
        own = {shard.key: shard.data.tolist() for shard in scale_shards(trainee.chunks) if "scale_" in shard.key}
        torch.distributed.all_gather_object(scales, own)
        found["scales"] = scales
    if runtime.rank() == 0:
        (folder / f"{ranks}.json").write_text(json.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
