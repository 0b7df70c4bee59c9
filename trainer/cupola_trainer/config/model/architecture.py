"""The shape of a decoder: one configuration for every family.

A family is a set of values, not a class: `presets` holds the published ones, `conversion.families` everything else
about a family. Nothing here imports torch.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT
from cupola_trainer.config.model.positions import (
    DualChunk,
    DynamicRope,
    LengthScaling,
    Llama3Rope,
    RopeScaling,
    YarnRope,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MoEConfig:
    """The mixture-of-experts part of a model: Qwen2-MoE's block."""

    num_experts: int = Field(default=8, ge=1)
    """Routed experts per layer, over all ranks."""

    top_k: int = Field(default=2, ge=1)
    """Experts per token."""

    expert_ffn_hidden_size: int = Field(ge=1)
    """Intermediate size of one routed expert."""

    shared_expert_ffn_hidden_size: int | None = Field(default=None, ge=1)
    """Intermediate size of the shared expert (sigmoid-gated); None for no shared expert."""

    norm_topk_prob: bool = False
    """Renormalize the top-k probabilities to sum to one. Qwen2-MoE does not."""

    balancing: Literal["aux", "seq_aux", "global_aux", "bias", "none"] = "aux"
    """Load balancing: a loss over each micro-batch, over each sequence, or over the step's micro-batches so far on all
    ranks; or, without a loss, a bias on the selection scores (Wang et al. 2024), which needs sigmoid scores."""

    aux_loss_coeff: float = Field(default=1e-3, ge=0)
    """Weight of the load-balancing loss."""

    bias_update_rate: float = Field(default=1e-3, gt=0)
    """How far `bias` balancing moves an expert's bias at each step."""

    score_function: Literal["softmax", "sigmoid"] = "softmax"
    """Turns router logits into scores. Qwen2-MoE uses softmax; sigmoid's top k are always renormalized."""

    capacity_factor: float | None = Field(default=None, gt=0)
    """Maximum tokens per expert and micro-batch, relative to an even share; the least probable are dropped. None for
    dropless."""

    z_loss_coeff: float = Field(default=0.0, ge=0)
    """Weight of the router z-loss."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k={self.top_k} is more than num_experts={self.num_experts}. Try top_k={self.num_experts}."
            )
        return self

    @model_validator(mode="after")
    def _bias_needs_sigmoid(self) -> "MoEConfig":
        if self.balancing == "bias" and self.score_function != "sigmoid":
            raise ValueError(
                f"balancing=bias with score_function={self.score_function}: bias balancing needs scores that are "
                "independent of each other. Use score_function=sigmoid."
            )
        return self

    @model_validator(mode="after")
    def _router_trains(self) -> "MoEConfig":
        if self.norm_topk_prob and self.top_k == 1:
            raise ValueError(
                "norm_topk_prob=true with top_k=1: every weight is 1, so the router never learns. "
                "Use top_k=2, or norm_topk_prob=false."
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Everything needed to build a decoder, nothing about training it. The defaults are Qwen2's."""

    vocab_size: int = Field(default=0, ge=0)
    """Rows of the embedding. 0 in a recipe: taken from the tokenizer, padded to a multiple of 64."""

    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""

    num_layers: int = Field(ge=1)
    """Decoder layers."""

    num_attention_heads: int = Field(ge=1)
    """Query heads."""

    num_query_groups: int = Field(ge=1)
    """Key and value heads (GQA)."""

    head_dim: int | None = Field(default=None, ge=2)
    """Width of one head; None for hidden_size / num_attention_heads."""

    ffn_hidden_size: int = Field(ge=1)
    """Intermediate size of the dense gated FFN."""

    activation: Literal["silu", "gelu_tanh"] = "silu"
    """The FFN's gate: SwiGLU, or Gemma's GeGLU (the tanh form of GELU)."""

    max_position_embeddings: int = Field(ge=1)
    """Longest sequence, in tokens."""

    rope_theta: float = Field(default=1_000_000.0, gt=0)
    """RoPE base."""

    rope_scaling: RopeScaling | None = None
    """RoPE scaling beyond the trained length; None for no scaling."""

    local_rope_theta: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)
    """RoPE base of layers with a window, which `rope_scaling` leaves alone (Gemma 3); None for `rope_theta`."""

    dual_chunk: DualChunk | None = None
    """Dual chunk attention; None for plain attention."""

    length_scaling: LengthScaling | None = None
    """Scaling of queries beyond the trained length; None for no scaling."""

    attention_windows: tuple[Annotated[int, Field(ge=1)] | None, ...] = ()
    """Sliding window of each layer in tokens, the query included; null for full attention. One entry per layer, or a
    repeating pattern: [4096, null] alternates, as in Gemma 2. Empty: full attention in every layer."""

    query_pre_attn_scalar: float | None = Field(default=None, gt=0)
    """Attention scores are divided by its square root; None for head_dim."""

    attn_logit_softcapping: float | None = Field(default=None, gt=0)
    """Attention scores become cap * tanh(score / cap) (Gemma 2: 50)."""

    final_logit_softcapping: float | None = Field(default=None, gt=0)
    """The same for the final logits (Gemma 2: 30)."""

    rms_norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of RMSNorm."""

    zero_centered_norm: bool = False
    """RMSNorm multiplies by 1 + weight, with weights initialized to 0 (Gemma)."""

    pre_norm: bool = Field(default=True, exclude_if=lambda value: value)
    """RMSNorm on the inputs of attention and FFN. OLMo 2 has only `post_norm`."""

    post_norm: bool = False
    """An extra RMSNorm on the outputs of attention and FFN, before the residual is added (Gemma 2)."""

    qkv_bias: bool = True
    """Bias on Q, K and V, as in Qwen2."""

    qk_norm: bool = Field(default=False, exclude_if=lambda value: not value)
    """RMSNorm on each query and key head before RoPE (Qwen3). Omitted from JSON when off, as in older checkpoints."""

    joint_qk_norm: bool = Field(default=False, exclude_if=lambda value: not value)
    """The same over all query heads together, and over all key heads, with a weight for each of their dimensions
    (OLMo 2)."""

    tie_embeddings: bool = True
    """Share the input embedding with the output layer, as Qwen2 0.5B and 1.5B do."""

    scale_embeddings: bool = False
    """Multiply the input embedding by sqrt(hidden_size) (Gemma)."""

    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""

    moe: MoEConfig | None = None
    """None for a dense model."""

    family: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """transformers' model_type to export as, where several families describe the model; None for the first of them by
    name. Changes nothing else."""

    head: Literal["language_model", "scalar"] = "language_model"
    """The output head: logits over the vocabulary, or one number per token (reward and value models)."""

    @property
    def is_scalar(self) -> bool:
        """Whether the model outputs one number per token instead of logits."""
        return self.head == "scalar"

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer (from 0) in tokens; None for full attention."""
        return self.attention_windows[layer % len(self.attention_windows)] if self.attention_windows else None

    @model_validator(mode="after")
    def _shapes(self) -> "ModelConfig":
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}. "
                f"Try hidden_size={-(-self.hidden_size // self.num_attention_heads) * self.num_attention_heads}."
            )
        if self.head_size % 2:
            raise ValueError(f"RoPE rotates pairs of dimensions, but head_dim={self.head_size}. Try an even head_dim.")
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_query_groups={self.num_query_groups}. Try num_query_groups={self.num_attention_heads}."
            )
        return self

    @model_validator(mode="after")
    def _norms(self) -> "ModelConfig":
        if self.qk_norm and self.joint_qk_norm:
            raise ValueError("qk_norm and joint_qk_norm: queries and keys have one norm. Leave one of them out.")
        if not self.pre_norm and not self.post_norm:
            raise ValueError("pre_norm=false with post_norm=false: no layer would have a norm. Use one of them.")
        if self.local_rope_theta and not any(self.attention_windows):
            raise ValueError(
                "local_rope_theta without attention_windows: it is the base of layers with a window. Leave it out."
            )
        return self

    @model_validator(mode="after")
    def _positions(self) -> "ModelConfig":
        scaling = self.rope_scaling
        if isinstance(scaling, YarnRope | DynamicRope):
            longest = int(scaling.factor * scaling.original_max_position_embeddings)
            name, reached = "max_position_embeddings", self.max_position_embeddings
            if self.dual_chunk:
                name, reached = "dual_chunk.chunk_size", self.dual_chunk.chunk_size
            if reached > longest:
                raise ValueError(
                    f"{name}={reached} is beyond what {scaling.type} allows: factor x "
                    f"original_max_position_embeddings = {longest}. Raise rope_scaling.factor, or shorten the "
                    "sequences."
                )
        if isinstance(scaling, Llama3Rope) and scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ValueError(
                f"rope_scaling.high_freq_factor={scaling.high_freq_factor} must be above "
                f"low_freq_factor={scaling.low_freq_factor}."
            )
        if len(self.attention_windows) > self.num_layers:
            raise ValueError(
                f"attention_windows has {len(self.attention_windows)} entries for num_layers={self.num_layers}. "
                "Give one per layer, or a shorter repeating pattern."
            )
        return self

    @model_validator(mode="after")
    def _chunks(self) -> "ModelConfig":
        others = {
            "rope_scaling of type dynamic": isinstance(self.rope_scaling, DynamicRope),
            "attention_windows": any(self.attention_windows),
            "attn_logit_softcapping": self.attn_logit_softcapping is not None,
        }
        clash = next((name for name, given in others.items() if given), None)
        if self.dual_chunk and clash:
            raise ValueError(
                f"dual_chunk with {clash}: dual chunk attention keeps distances within chunk_size and "
                f"attends to all tokens with a plain softmax. Leave one of them out."
            )
        return self
