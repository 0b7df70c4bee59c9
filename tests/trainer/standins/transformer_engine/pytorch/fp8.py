"""FP8 is off."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class FP8GlobalStateManager:
    """The state of FP8 in this process."""

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return False


def fp8_autocast(enabled: bool = True, **kwargs: Any) -> AbstractContextManager[None]:
    if enabled:
        raise NotImplementedError("the stand-in for Transformer Engine has no FP8")
    return nullcontext()
