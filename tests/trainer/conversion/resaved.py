"""Load a checkpoint's weights in another layout and save them: `torchrun resaved.py CHECKPOINT TO LAYOUT-JSON`."""

import json
import sys
from pathlib import Path

from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import LayoutConfig

if __name__ == "__main__":
    source, to, layout = Path(sys.argv[1]), Path(sys.argv[2]), LayoutConfig(**json.loads(sys.argv[3]))
    runtime.start(layout, seed=0)
    model = checkpoint.read_model(source)
    chunks = models.build(model, layout)
    checkpoint.load_weights(source, chunks)
    checkpoint.save(
        to, chunks, model=model, layout=layout, step=3, consumed_samples=24, seed=1, objective="next_token",
        tokenizer=source / "tokenizer",
    )  # fmt: skip
    runtime.stop()
