"""Copies from the host to this rank's device, beside its computation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cupola_trainer import runtime

FINGERPRINTED = False  # says when tensors are copied, not what is in them


def to_device(tensor: Tensor) -> Tensor:
    """A host tensor's copy on this rank's device, ready for what the current stream does next. On a GPU this returns
    at once: the copy is from pinned memory, which torch does not use again before the copy has been made."""
    if not torch.cuda.is_available():
        return tensor
    return tensor.pin_memory().to(runtime.device(), non_blocking=True)


class SideStream:
    """A stream for the copies of one thread, while another thread computes. On a CPU it does nothing."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Copies made inside, in this thread, go to the side stream of this rank's device."""
        with torch.cuda.stream(self._stream):
            yield

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors that were copied usable by the calling thread's stream.

        That stream waits for all copies so far. And the tensors' memory, which belongs to the side stream, is not
        given to later copies before what this stream does with the tensors is done.
        """
        if self._stream is None:
            return
        here = torch.cuda.current_stream()
        here.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(here)
