"""Names of Transformer Engine that Megatron-Core imports and we never use."""

from typing import Any


def absent(name: str) -> Any:
    """A class to import or derive from; creating one raises NotImplementedError."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the stand-in for Transformer Engine has no {name}")

    return type(name.rpartition(".")[2], (), {"__init__": __init__})
