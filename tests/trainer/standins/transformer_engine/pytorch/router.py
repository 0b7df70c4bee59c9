"""Fused kernels for routers, only as names: Megatron calls them with `moe_router_fusion`, which we do not set."""

from ..absent import absent

fused_compute_score_for_moe_aux_loss = absent("pytorch.router.fused_compute_score_for_moe_aux_loss")
fused_moe_aux_loss = absent("pytorch.router.fused_moe_aux_loss")
fused_topk_with_score_function = absent("pytorch.router.fused_topk_with_score_function")
