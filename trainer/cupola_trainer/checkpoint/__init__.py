"""Training checkpoints: sealed folders that any layout can load.

    model.json      the ModelConfig
    training.json   step, consumed samples, seed, objective, layout, and the loop's extras
    tokenizer/      as saved by transformers
    state/          weights: see `storage`
    optimizer/      what only further training needs: moments and fp32 weights of a bf16 model in the same form, and
                    optimizer.json with the optimizer's step and the schedule
    manifest.json   written last; digests are verified before anything is read

Without `optimizer/` it is a checkpoint all the same; stages publish it that way, and `optimizer/` beside it.

A checkpoint is written under a temporary name and renamed once complete.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cupola_platform.artifacts import Artifact
from cupola_trainer.checkpoint.description import MODEL, Progress, read_model, read_training
from cupola_trainer.checkpoint.loading import load_training, load_weights
from cupola_trainer.checkpoint.saving import Checkpointer, Save, SaveFailedError
from cupola_trainer.config import LayoutConfig, ModelConfig

__all__ = [
    "MODEL",
    "Checkpointer",
    "Progress",
    "Save",
    "SaveFailedError",
    "load_training",
    "load_weights",
    "read_model",
    "read_training",
    "save",
]


def save(
    folder: Path,
    chunks: Sequence[torch.nn.Module],
    *,
    model: ModelConfig,
    layout: LayoutConfig,
    step: int,
    consumed_samples: int,
    seed: int,
    objective: str,
    tokenizer: Path | None,
    optimizer: Any = None,
    scheduler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write one checkpoint and wait for it. Collective: every rank must call it. `tokenizer` is a folder to copy.

    Raises:
        SaveFailedError: writing failed, on a full disk for instance; an existing `folder` is unchanged.
    """
    return (
        Checkpointer(chunks, optimizer, scheduler)
        .begin(
            folder,
            model=model,
            layout=layout,
            step=step,
            consumed_samples=consumed_samples,
            seed=seed,
            objective=objective,
            tokenizer=tokenizer,
            extra=extra,
        )
        .finish()
    )
