"""Padded rows are cut to their longest, and samples of similar length share a micro-batch; nothing else changes."""

from typing import Any

import pytest
import torch

from cupola_trainer.data.batches import without_padding


def batch(ends: list[int], length: int) -> dict[str, torch.Tensor]:
    """Rows whose loss mask ends at `ends`."""
    mask = (torch.arange(length) < torch.tensor(ends)[:, None]).float()
    return {"tokens": torch.ones(len(ends), length), "loss_mask": mask, "of_row": torch.zeros(len(ends)),
            "wide": torch.zeros(len(ends), length, 3)}  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "length", "unit", "width"),
    [
        ([3, 70], 256, 64, 128),
        ([3, 64], 256, 64, 64),
        ([0, 0], 256, 64, 64),
        ([3, 250], 250, 64, 250),
        ([1], 48, 64, 48),
    ],
)
def test_columns_after_the_last_loss_are_cut(ends: Any, length: int, unit: int, width: int) -> None:
    cut = without_padding(batch(ends, length), unit)
    assert {name: tuple(tensor.shape) for name, tensor in cut.items()} == {
        "tokens": (len(ends), width), "loss_mask": (len(ends), width), "of_row": (len(ends),),
        "wide": (len(ends), width, 3),
    }  # fmt: skip
    assert cut["loss_mask"].sum() == sum(ends)


def test_columns_that_must_stay_do() -> None:
    assert without_padding(batch([3], 256), 64, used=65)["tokens"].shape == (1, 128)
