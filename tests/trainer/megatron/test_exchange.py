"""The replacements of gloo's collectives match torch's."""

import subprocess
from collections.abc import Callable
from pathlib import Path


def test_all_gather_and_reduce_scatter_equal_torchs(
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    torchrun(3, Path(__file__).with_name("exchange_ranks.py"))
