"""Tensors out of a checkpoint of any layout, one layer at a time, without a process group.

Checkpoints name every tensor globally; those of all layers (and all experts) are one there, stacked in front.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from cupola_platform import artifacts
from cupola_trainer.checkpoint.storage import StoredState


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by key, each read from disk when asked for: whole, or of one layer.

    The checkpoint's digests are verified before anything in it is read.

    Raises:
        CorruptArtifactError: it does not verify; names the file.
    """

    def __init__(self, folder: Path) -> None:
        artifacts.verify(folder)
        self._state = StoredState(folder / "state")

    def __getitem__(self, key: str) -> Tensor:
        return self.read(key)

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or what it holds at an index into its leading (layer, expert) dimensions."""
        return self._state.read(key, index)

    def outline(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """What `read` would give, without its numbers: on the meta device."""
        return self._state.outline(key, index)

    def __contains__(self, key: object) -> bool:
        return key in self._state.boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.boxes)

    def __len__(self) -> int:
        return len(self._state.boxes)
