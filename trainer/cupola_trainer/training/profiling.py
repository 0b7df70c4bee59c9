"""Trace a few training steps with torch's profiler, for Perfetto or chrome://tracing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cupola_trainer import runtime

FINGERPRINTED = False  # only measures


class Profiler:
    """Traces a range of steps; each rank writes its own file."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        """`steps` are the first and the last step to trace, counted from 1; None disables tracing."""
        self.steps = steps
        self.folder = folder
        self._profile: torch.profiler.profile | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Trace the body if `step` is in range. The last step writes the file."""
        first, last = self.steps or (0, 0)
        if not first <= step <= last:
            yield
            return
        if self._profile is None:
            self._profile = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profile.start()
        with torch.profiler.record_function(f"step {step}"):
            yield
        if step == last:
            self._profile.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.folder / f"steps-{first}-{last}-rank-{runtime.rank()}.json"))
            self._profile = None
