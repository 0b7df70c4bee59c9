"""The scales of FP8's delayed scaling, which further training needs to go on as if it had not been interrupted."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.utils import unwrap_model
from torch import Tensor

from cupola_trainer.checkpoint.shards import Shard, moment_key

SCALES = moment_key("fp8_", "")[:-1]
"""What the keys of all scales begin with."""


def scale_shards(chunks: Sequence[torch.nn.Module]) -> list[Shard]:
    """Each scale and its history, stacked over the layers; none for other recipes. All ranks of a layer hold the same
    ones: Transformer Engine shares the largest magnitudes over them in every pass."""
    shards = []
    for chunk in unwrap_model(list(chunks)):
        if chunk.config.fp8 and chunk.config.fp8_recipe == "delayed":
            shards += [_shard(*entry) for entry in _scales(chunk)]
    return shards


def _shard(layers: int, number: int, name: str, value: Tensor) -> Shard:
    return Shard(f"{SCALES}{name}", (layers, *value.shape), (number, *(0 for _ in value.shape)), value[None])


def _scales(chunk: Any) -> Iterator[tuple[int, int, str, Tensor]]:
    """The number of layers, the layer's own, the scale's name with its module's, and the scale."""
    layers = chunk.config.num_layers
    with torch.no_grad(), get_fp8_context(chunk.config):
        for layer in chunk.decoder.layers:
            for path, module in layer.named_modules():
                if not hasattr(module, "fuse_wgrad_accumulation"):  # only its linear layers have this
                    continue
                module.init_fp8_metadata(num_gemms=getattr(module, "num_gemms", 1))
                for direction in ("fwd", "bwd"):
                    state = module.fp8_meta[f"scaling_{direction}"]
                    for name in ("scale", "amax_history"):
                        key = f"{name}_{direction}.decoder.layers.{path}"
                        yield layers, layer.layer_number - 1, key, getattr(state, name)
