"""The configuration of an upcycled model. Imports no torch."""

from dataclasses import replace
from typing import Literal

from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig

RouterStart = Literal["random", "copies", "zeros"]


def mixture_of(dense: ModelConfig, moe: MoEConfig, *, router: RouterStart, match_dense: bool) -> ModelConfig:
    """The shape of the upcycled model.

    Raises:
        ConfigError: the model has experts already, the expert sizes are invalid, or `match_dense` is impossible.
    """
    if dense.moe:
        raise ConfigError("moe: the parent is a mixture of experts already. Upcycle a dense checkpoint.")
    output_scales(dense, moe, router=router, match_dense=match_dense)
    try:
        return replace(dense, moe=moe, family=None)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def output_scales(dense: ModelConfig, moe: MoEConfig, *, router: RouterStart, match_dense: bool) -> tuple[float, float]:
    """Factors on the outputs of routed and shared experts, see `UpcycleJob.match_dense`.

    An expert is 1 / granularity of a copy and the weights of the top k sum to 1, so whole copies produce
    1 / granularity of the dense FFN's output. A shared expert of m copies produces m times that output, halved by its
    gate.

    Raises:
        ConfigError: no factors make the outputs equal.
    """
    h_ffn = dense.ffn_hidden_size
    if not match_dense:
        return 1.0, 1.0
    granularity, rest = divmod(h_ffn, moe.expert_ffn_hidden_size)
    shared, shared_rest = divmod(moe.shared_expert_ffn_hidden_size or h_ffn, h_ffn)
    problems = {
        f"router={router!r} is not 'copies'": router != "copies",
        "moe.norm_topk_prob is not true": not moe.norm_topk_prob,
        f"ffn_hidden_size={h_ffn} is not a multiple of moe.expert_ffn_hidden_size": rest != 0,
        f"moe.num_experts={moe.num_experts} do not make whole copies": moe.num_experts % (granularity or 1) != 0,
        f"moe.top_k={moe.top_k} does not cover whole copies": moe.top_k % (granularity or 1) != 0,
        "moe.shared_expert_ffn_hidden_size is not whole copies": shared_rest != 0,
    }
    for problem, applies in problems.items():
        if applies:
            raise ConfigError(
                f"match_dense: {problem}, so no scale makes the outputs equal. Change it, or set match_dense=false."
            )
    return (granularity / 2, 1 / shared) if moe.shared_expert_ffn_hidden_size else (float(granularity), 1.0)
