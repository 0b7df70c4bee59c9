"""What this machine cannot train is refused before a process group or a folder exists."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.trainer.training.layout_ranks import DENSE

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, Fp8Config, LayoutConfig, NextTokenData, TrainJob
from cupola_trainer.training import loop
from cupola_trainer.training.loop import begin

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"precision": "fp8"}, "^precision=fp8 needs a GPU, and this machine has none"),
        ({"precision": "fp8", "fp8": Fp8Config(first_layers=9)}, "^fp8.first_layers=9 is more than the 4 layers"),
        ({"layout": LayoutConfig(offload_optimizer=True)}, "^layout.offload_optimizer=true needs a GPU"),
        ({"model": replace(DENSE, max_position_embeddings=1 << 30), "length": 1 << 29}, "= 536,870,912 tokens need about"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_here_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], line: str
) -> None:
    runtime.stop()  # what an earlier test in this process may have left
    monkeypatch.setattr(loop, "memory", lambda: 64.0 * 2**30)
    length = settings.pop("length", 32)
    batch = BatchConfig(sequence_length=length, micro_batch_size=1, global_batch_size=1)
    data = NextTokenData(tokens=tmp_path / "tokens")
    common: dict[str, Any] = {"model": DENSE, "steps": 1, "seed": 0, "output": tmp_path / "job", "batch": batch}
    with pytest.raises(ConfigError, match=line):
        begin(TrainJob(**common | settings, data=data))
    assert not dist.is_initialized()
    assert list(tmp_path.iterdir()) == []
