"""Run by test_host_memory.py: prints the bytes of a checkpoint, and by how much this process grew while it was saved
with memory for all of it and with 64 MiB.

saving_process.py FOLDER
"""

import sys
from pathlib import Path

from cupola_trainer import models, optim, runtime
from cupola_trainer.checkpoint import Checkpointer
from cupola_trainer.checkpoint.staging import Staging
from cupola_trainer.config import LayoutConfig, ModelConfig, OptimizerConfig

LAYOUT = LayoutConfig()
MODEL = ModelConfig(
    vocab_size=4096, hidden_size=512, num_layers=10, num_attention_heads=8, num_query_groups=8, ffn_hidden_size=2048,
    max_position_embeddings=32,
)  # fmt: skip


def resident(which: str) -> int:
    """VmRSS or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def growth(saver: Checkpointer, folder: Path) -> int:
    """How far the peak of this process's memory during a save is above what it had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    saver.begin(
        folder, model=MODEL, layout=LAYOUT, step=1, consumed_samples=1, seed=0, objective="next_token", tokenizer=None
    ).finish()
    return resident("VmHWM") - before


def main(folder: Path) -> None:
    runtime.start(LAYOUT, seed=0)
    trainee = optim.build(models.build(MODEL, LAYOUT), LAYOUT, OptimizerConfig(), 10)
    grown = []
    for name, limit in (("bounded", 64 << 20), ("whole", 16 << 30)):
        saver = Checkpointer(trainee.chunks, trainee.optimizer, trainee.scheduler, staging=Staging(limit))
        saver.share.now()  # allocates the moments
        grown.append(growth(saver, folder / name))
    print(sum(map(sum, saver.share.sizes)), *reversed(grown))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
