"""Small models of every family, with weights and texts that are the same on every machine.

Weights are drawn by NumPy's PCG64 as uniform floats: integer arithmetic and one multiplication, unlike normal numbers,
whose tails depend on the C library.
"""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig
from cupola_trainer.config.model.positions import DualChunk, LengthScaling, Llama3Rope, YarnRope
from cupola_trainer.models.initialization import sharded_tensors

LENGTH = 128
"""Tokens of a row, except for dual chunks, which have `LONG`."""
LONG = 512
DENSE = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=256,
    max_position_embeddings=LENGTH,
    init_std=0.05,
)
FAMILIES = {
    "qwen2": DENSE,
    "qwen2-moe": replace(
        DENSE,
        tie_embeddings=False,
        moe=MoEConfig(num_experts=8, top_k=2, expert_ffn_hidden_size=64, shared_expert_ffn_hidden_size=128),
    ),
    "llama": replace(DENSE, qkv_bias=False, rope_scaling=Llama3Rope(original_max_position_embeddings=64)),
    "gemma2": replace(
        DENSE,
        head_dim=48,
        activation="gelu_tanh",
        attention_windows=(48, None),
        query_pre_attn_scalar=40,
        attn_logit_softcapping=20.0,
        final_logit_softcapping=10.0,
        zero_centered_norm=True,
        post_norm=True,
        qkv_bias=False,
        scale_embeddings=True,
    ),
    "dual-chunk": replace(
        DENSE,
        max_position_embeddings=LONG,
        rope_scaling=YarnRope(factor=4.0, original_max_position_embeddings=LENGTH),
        dual_chunk=DualChunk(chunk_size=LENGTH, local_window=32),
        length_scaling=LengthScaling(original_max_position_embeddings=LENGTH),
    ),
}


def build(model: ModelConfig, dtype: torch.dtype, *, plain_layers: bool = False) -> tuple[Any, str]:
    """The model in one process, on this device, with the weights of `weights`; and the digest of these."""
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(model, LayoutConfig(), seed=None, dtype=dtype, plain_layers=plain_layers)
    drawn: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for shard in sharded_tensors([chunk]):
            stacked = shard.prepend_axis_num  # leading axes of the global tensor: layer, expert
            name = "/".join(map(str, (shard.key, *shard.global_offset[:stacked])))
            if name not in drawn:
                drawn[name] = weights(name, shard.global_shape[stacked:], model)
            place = zip(shard.global_offset[stacked:], shard.local_shape, strict=True)
            part = drawn[name][tuple(slice(start, start + size) for start, size in place)]
            shard.data.copy_(torch.from_numpy(part.copy()))
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(drawn):
        total.update(name.encode() + drawn[name].tobytes())
    return chunk, total.hexdigest()


def weights(name: str, shape: tuple[int, ...], model: ModelConfig) -> np.ndarray:
    """Uniform numbers with the model's standard deviation, fp32; around 1 for norms, unless those are zero-centered."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    uniform = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    spread = np.float32(2 * model.init_std * math.sqrt(3))
    drawn: np.ndarray = (uniform - np.float32(0.5)) * spread
    is_norm = name.split("/")[0].endswith(("norm_weight", "norm.weight"))
    return drawn + np.float32(1) if is_norm and not model.zero_centered_norm else drawn


def draws(*seed: int) -> np.random.Generator:
    """The generator of a text; only its integers are used."""
    return np.random.Generator(np.random.PCG64(list(seed)))
