"""Fold adapters into the weights, one tensor of one layer at a time."""

from torch import Tensor

from cupola_trainer.config import LoraConfig
from cupola_trainer.conversion.checkpoint_reader import StoredTensors


class Folded:
    """Tensors of the merged model: W + alpha / rank * B A, in the weights' precision."""

    def __init__(self, base: StoredTensors, adapter: StoredTensors, lora: LoraConfig) -> None:
        self.base, self.adapter, self.lora = base, adapter, lora

    def __call__(self, key: str, index: tuple[int, ...]) -> Tensor:
        """One tensor of one layer (and expert)."""
        weight = self.base.read(key, index)
        prefix = key.removesuffix("weight")
        if not key.endswith(".weight") or f"{prefix}lora_a" not in self.adapter:
            return weight
        a, b = (self.adapter.read(f"{prefix}{name}", index).float() for name in ("lora_a", "lora_b"))
        return (weight.float() + self.lora.scale * (b @ a)).to(weight.dtype)
