"""Read tensors from a checkpoint of any layout, one layer at a time, without a process group.

Checkpoint keys are global; a tensor of all layers (and all experts) is stacked along its leading dimensions.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from cupola_platform import artifacts
from cupola_trainer.checkpoint.description import STATE
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import OPTIMIZER


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by key, read lazily from disk, whole or one layer at a time.

    The checkpoint's digests are verified before anything is read; an optimizer's files are left unread.

    Raises:
        CorruptArtifactError: a file does not match its digest; names the file.
    """

    def __init__(self, folder: Path) -> None:
        artifacts.verify(folder, unread=OPTIMIZER)
        self._state = StoredState(folder / STATE)

    def __getitem__(self, key: str) -> Tensor:
        return self.read(key)

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or its slice at an index into the leading (layer, expert) dimensions."""
        return self._state.read(key, index)

    def outline(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """The result of `read` without data, on the meta device."""
        return self._state.outline(key, index)

    def __contains__(self, key: object) -> bool:
        return key in self._state.boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.boxes)

    def __len__(self) -> int:
        return len(self._state.boxes)
