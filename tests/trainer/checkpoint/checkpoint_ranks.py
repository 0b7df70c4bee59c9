"""Run by test_checkpoint.py under torchrun: trains, saves, loads in other layouts, and prints the numbers.

checkpoint_ranks.py FOLDER save      in each layout of this number of ranks: three steps, a checkpoint, three steps more
checkpoint_ranks.py FOLDER load      every checkpoint in each layout of this number of ranks, and three steps more
checkpoint_ranks.py FOLDER both      one after the other
"""

import json
import sys
from pathlib import Path

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.objectives import passes
from cupola_trainer.optim import Trainee

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import layout_ranks as layouts  # type: ignore[import-not-found]

SAVED = {
    "moe one process": LayoutConfig(),
    "moe ep2": LayoutConfig(dp=2, ep=2),
    "moe tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "moe pp2": LayoutConfig(pp=2),
    "dense one process": LayoutConfig(),
    "dense pp2 vp2": LayoutConfig(pp=2, vp=2),
    "dense tp2 whole optimizer": LayoutConfig(tp=2, distributed_optimizer=False),
    "dense dp2": LayoutConfig(dp=2),
}


def model_of(name: str) -> ModelConfig:
    model: ModelConfig = layouts.MODELS[name.split()[0]]
    return model


def trainee_of(name: str) -> Trainee:
    layout = SAVED[name]
    runtime.start(layout, seed=0)
    return optim.build(models.build(model_of(name), layout, seed=5), layout, layouts.OPTIMIZER, 8)


def train(trainee: Trainee, first: int, steps: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    numbers = []
    for step in range(first, first + steps):
        means = passes.train(trainee.chunks, layouts.MaskedWords(), layouts.batches_of(layouts.MaskedWords(), step))
        trainee.scheduler.step(increment=1)
        numbers.append((means["loss"], trainee.update()[0]))
    return numbers


def save(folder: Path, name: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of the next steps without interruption."""
    trainee = trainee_of(name)
    train(trainee, 0, 3)
    checkpoint.save(
        folder / name, trainee.chunks, model=model_of(name), layout=SAVED[name], step=3, consumed_samples=24, seed=0,
        objective="masked_words", tokenizer=None, optimizer=trainee.optimizer, scheduler=trainee.scheduler,
    )  # fmt: skip
    return train(trainee, 3, 3)


def load(folder: Path, saved: str, name: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of the next steps in the layout `name`."""
    trainee = trainee_of(name)
    progress = checkpoint.load_training(folder / saved, trainee.chunks, trainee.optimizer, trainee.scheduler)
    assert (progress.step, progress.consumed_samples) == (3, 24)
    return train(trainee, 3, 3)


def main(folder: Path, what: str) -> None:
    here = [name for name, layout in SAVED.items() if layout.world_size == runtime.world_size()]
    found = {name: save(folder, name) for name in here if what != "load"}
    for name in here if what != "save" else ():
        for saved in SAVED:
            if saved.split()[0] == name.split()[0] and saved != name:
                found[f"{saved} -> {name}"] = load(folder, saved, name)
    if runtime.rank() == 0:
        (folder / f"{what}-{runtime.world_size()}.json").write_text(json.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
