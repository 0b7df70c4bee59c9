"""Patches of megatron.core modules, applied after import; `imports` has already retargeted their devices.

docs/development.md lists every patch with its reason and the test that fails without it; `versions` lists the tested
releases of Megatron-Core.
"""

from collections.abc import Callable
from typing import Any

import torch

from cupola_trainer.kernels.rotary import rotary
from cupola_trainer.kernels.swiglu import swiglu
from cupola_trainer.megatron import shortcuts
from cupola_trainer.megatron.adam import FusedAdam
from cupola_trainer.megatron.capacity import keep_within_capacity
from cupola_trainer.megatron.exchange import exchange_at_once_over_gloo, exchange_over_gloo
from cupola_trainer.megatron.uneven import parts_of_any_length


def patch(module: Any) -> None:
    """Patch a freshly imported module of megatron.core."""
    for apply in PATCHES.get(module.__name__, ()):
        apply(module)


def _no_compiler_without_cuda(jit: Any) -> None:
    """`jit_fuser` would run torch.compile, and so a C++ compiler, on each fused function."""
    if not torch.cuda.is_available():
        jit.disable_jit_fuser()


def _router_without_transformer_engine(moe_utils: Any) -> None:
    """The name is bound only with Transformer Engine, but always read if the router has its own dtype."""
    moe_utils.__dict__.setdefault("te_general_gemm", None)


def _capacity(router: Any) -> None:
    """The original compares only the tokens of one rank, so layouts that split a micro-batch drop different tokens."""
    router.apply_router_token_dropping = keep_within_capacity


def _split_sizes_on_cpu(moe_utils: Any) -> None:
    """The original converts only CUDA tensors, but gloo's all_to_all needs lists too."""
    original = moe_utils.maybe_move_tensor_to_cpu

    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if torch.is_tensor(tensor) and not tensor.is_cuda:
            return tensor.numpy() if as_numpy else tensor
        return original(tensor, as_numpy=as_numpy, record_stream=record_stream)

    moe_utils.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu


def _rotary_by_row(rope_utils: Any) -> None:
    """Use our kernel where there is no fused one (unfused, Megatron needs several passes and a concatenation), and for
    rows with positions of their own, which the fused one refuses."""
    fused = rope_utils.fused_apply_rotary_pos_emb

    def apply(x: Any, angles: Any, interleaved: bool = False) -> Any:
        return (rotary if angles.size(1) > 1 else fused)(x, angles, interleaved=interleaved)

    rope_utils.fused_apply_rotary_pos_emb = apply if fused else rotary


def _swiglu_without_compiler(fused_bias_swiglu: Any) -> None:
    """The original is meant to be compiled; uncompiled, it needs several passes and a concatenation."""
    if not torch.cuda.is_available():
        fused_bias_swiglu.bias_swiglu_impl = lambda x, bias, *unused: swiglu(x if bias is None else x + bias)
        fused_bias_swiglu.weighted_bias_swiglu_impl = lambda x, bias, weights, *unused: swiglu(x, weights)


def _adam(optimizer: Any) -> None:
    """Without Transformer Engine and Apex, use an Adam that counts steps where our checkpoints store them."""
    if optimizer.USING_PYTORCH_OPTIMIZER:
        optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False


def _distributed_adam(optimizer: Any) -> None:
    """The distributed optimizer accepts only the Adam class that it imported."""
    if not optimizer.HAVE_APEX_OR_TE:
        optimizer.Adam = FusedAdam


PATCHES: dict[str, tuple[Callable[[Any], None], ...]] = {
    "megatron.core.jit": (_no_compiler_without_cuda,),
    "megatron.core.transformer.moe.moe_utils": (_router_without_transformer_engine, _split_sizes_on_cpu),
    "megatron.core.transformer.moe.router": (_capacity,),
    "megatron.core.utils": (shortcuts.many_tensors_at_once,),
    "megatron.core.tensor_parallel.mappings": (
        parts_of_any_length,
        shortcuts.one_rank_shares_nothing,
        exchange_over_gloo,
    ),
    "megatron.core.tensor_parallel.layers": (shortcuts.plain_linear_on_one_rank, exchange_over_gloo),
    "megatron.core.distributed.param_and_grad_buffer": (exchange_at_once_over_gloo,),
    "megatron.core.models.common.embeddings.rope_utils": (_rotary_by_row,),
    "megatron.core.fusions.fused_bias_swiglu": (_swiglu_without_compiler,),
    "megatron.core.optimizer": (_adam,),
    "megatron.core.optimizer.distrib_optimizer": (_distributed_adam,),
}
