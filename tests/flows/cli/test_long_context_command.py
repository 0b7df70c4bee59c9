"""`cupola checkpoint long-context`: measurements and charts of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def checkpoint(life: Any) -> str:
    rows = life.json("artifacts", "--kind", "checkpoint")
    return str(next(row["id"] for row in rows if row["stage"] == "pretrain"))


@pytest.mark.slow
def test_a_checkpoint_is_measured_on_the_held_out_text_of_its_recipe(
    life: Any, checkpoint: str, tmp_path: Path
) -> None:
    picture = tmp_path / "reach.html"
    found = life.json(
        "checkpoint", "long-context", checkpoint, "--method", "none,dca", "--lengths", "64,256", "--needles", "2",
        "--to", str(picture),
    )  # fmt: skip
    assert found["trained_length"] == 128
    plain, chunked = found["methods"]["none"], found["methods"]["dca"]
    assert len(plain["loss_by_position"]) == 32
    assert plain["loss_by_position"][0] == pytest.approx(chunked["loss_by_position"][0])
    assert plain["loss_past"] != chunked["loss_past"]
    assert "<svg" in picture.read_text()
