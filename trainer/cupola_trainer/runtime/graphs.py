"""CUDA graphs: a function's kernels, recorded once and launched together."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 2
"""Calls before the recording, in which libraries allocate what they keep."""

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a function that reads and writes only tensors that stay where they are. Returns a function that does the same
work again and returns the same tensor with new values."""


def graph_capture() -> Capture | None:
    """The device's way to record; None if it has none."""
    return _capture if torch.cuda.is_available() else None


def _capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a save may go on in another thread
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
