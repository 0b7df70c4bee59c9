"""What stands in for gloo's collectives gives what torch's own give."""

import subprocess
from collections.abc import Callable
from pathlib import Path


def test_gathered_and_summed_parts_equal_those_of_torch(
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    torchrun(3, Path(__file__).with_name("exchange_ranks.py"))
