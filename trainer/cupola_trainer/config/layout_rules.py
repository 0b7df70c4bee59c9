"""Checks of a layout before anything starts. Imports no torch."""

from collections.abc import Iterator
from dataclasses import replace

from cupola_platform.errors import ConfigError
from cupola_trainer.config import BatchConfig, CopyingConfig, LayoutConfig, LengthSchedule, ModelConfig

FINGERPRINTED = False  # only refuses, computes nothing


def validate_layout(
    model: ModelConfig,
    layout: LayoutConfig,
    batch: BatchConfig | None = None,
    *,
    reset_at_documents: bool = False,
    lengths: LengthSchedule | None = None,
    copying: CopyingConfig | None = None,
    ranks: int | None = None,
) -> None:
    """Check that the model and its batches can be trained in a layout.

    Args:
        lengths: schedule of sequence lengths; None for full rows throughout.
        copying: settings of repeated pieces; None for plain text.
        ranks: processes that the launcher has; None to skip that check.

    Raises:
        ConfigError: a rule is violated.
    """
    _check_ranks(layout, ranks)
    _check_tensor_parallel(model, layout)
    _check_pipeline(model, layout)
    _check_experts(model, layout)
    _check_offloading(layout)
    if batch:
        _check_batch(model, layout, batch)
    if batch and lengths:
        _check_lengths(lengths, layout, batch)
    if batch and copying:
        _check_copying(copying, batch, lengths, reset_at_documents)


def of_its_own(model: ModelConfig, layout: LayoutConfig) -> LayoutConfig:
    """The layout for a second model in the same process: a dense model needs no expert parallelism."""
    return layout if model.moe else replace(layout, ep=1, etp=None)


def _check_ranks(layout: LayoutConfig, ranks: int | None) -> None:
    if ranks is not None and layout.world_size != ranks:
        raise ConfigError(
            f"tp x pp x cp x dp = {layout.tp} x {layout.pp} x {layout.cp} x {layout.dp} = "
            f"{layout.world_size} ranks, but there are {ranks}. Launch {layout.world_size}, or change the layout."
        )


def _check_tensor_parallel(model: ModelConfig, layout: LayoutConfig) -> None:
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "vocab_size"):
        _check_divides(name, getattr(model, name), "tp", layout.tp)
    if layout.sp and layout.tp == 1:
        raise ConfigError(
            "sp=true with tp=1: sequence parallelism shards over the tensor-parallel group. Use sp=false."
        )


def _check_pipeline(model: ModelConfig, layout: LayoutConfig) -> None:
    if layout.vp and layout.pp == 1:
        raise ConfigError(
            f"vp={layout.vp} with pp=1: the interleaved schedule needs a pipeline. Use pp=2 or leave vp out."
        )
    stages = "pp x vp" if layout.vp else "pp"
    _check_divides("num_layers", model.num_layers, stages, layout.pp * (layout.vp or 1))


def _check_experts(model: ModelConfig, layout: LayoutConfig) -> None:
    moe = model.moe
    if moe is None:
        if layout.ep > 1:
            raise ConfigError(f"ep={layout.ep}, but the model is dense. Use ep=1.")
        return
    if layout.tp > 1 and not layout.sp:
        raise ConfigError(f"tp={layout.tp} without sp: a mixture of experts under tensor parallelism needs sp=true.")
    _check_divides("moe.num_experts", moe.num_experts, "ep", layout.ep)
    etp = layout.etp or (1 if layout.ep > 1 else layout.tp)
    _check_divides("moe.expert_ffn_hidden_size", moe.expert_ffn_hidden_size, "etp", etp)
    if moe.shared_expert_ffn_hidden_size:
        _check_divides("moe.shared_expert_ffn_hidden_size", moe.shared_expert_ffn_hidden_size, "tp", layout.tp)
    _check_divides("tp x cp x dp", layout.tp * layout.cp * layout.dp, "ep x etp", layout.ep * etp)


def _check_offloading(layout: LayoutConfig) -> None:
    if not layout.offload_activations:
        return
    if layout.pp > 1:
        raise ConfigError(
            f"offload_activations=true with pp={layout.pp}: Transformer Engine's offloading knows no pipeline. Use "
            "pp=1, or recompute=full."
        )
    if layout.recompute != "none":
        raise ConfigError(
            f"offload_activations=true with recompute={layout.recompute}: what is computed again is not kept. Leave "
            "one of them out."
        )


def _check_batch(model: ModelConfig, layout: LayoutConfig, batch: BatchConfig) -> None:
    if batch.sequence_length > model.max_position_embeddings:
        raise ConfigError(
            f"sequence_length={batch.sequence_length} is more than max_position_embeddings="
            f"{model.max_position_embeddings}. Shorten the sequences, or raise max_position_embeddings."
        )
    if layout.cp > 1:
        _check_divides("sequence_length", batch.sequence_length, "2 x cp", 2 * layout.cp)
    if layout.sp:
        _check_divides("sequence_length / cp", batch.sequence_length // layout.cp, "tp", layout.tp)
    passes = batch.num_microbatches(layout.dp)
    if layout.vp and passes % layout.pp:
        raise ConfigError(
            f"{passes} micro-batches are not a multiple of pp={layout.pp}, as the interleaved schedule needs. "
            f"Try global_batch_size={batch.micro_batch_size * layout.dp * _next(passes, layout.pp)}."
        )


def _check_lengths(lengths: LengthSchedule, layout: LayoutConfig, batch: BatchConfig) -> None:
    for phase in lengths.phases:
        if batch.sequence_length % phase.sequence_length:
            raise ConfigError(
                f"a phase of {phase.sequence_length} tokens does not divide sequence_length={batch.sequence_length}, "
                "and rows are split into whole sequences. Try "
                f"{_nearest_divisor(batch.sequence_length, phase.sequence_length)}."
            )
        shortest = lengths.lengths(phase.sequence_length)[-1]
        unit = 2 * layout.cp * layout.tp if layout.cp > 1 else layout.tp if layout.sp else 1
        if shortest % unit:
            raise ConfigError(
                f"sequences of {shortest} tokens cannot be split over cp={layout.cp} and tp={layout.tp} ranks. "
                f"Raise lengths.shortest, or use lengths that are multiples of {unit}."
            )


def _check_copying(
    copying: CopyingConfig, batch: BatchConfig, lengths: LengthSchedule | None, reset_at_documents: bool
) -> None:
    if reset_at_documents:
        raise ConfigError(
            "copying with reset_at_documents=true: a piece may repeat in another document, which cannot see the "
            "first. Leave one of them out."
        )
    longest = [phase.sequence_length for phase in lengths.phases] if lengths else [batch.sequence_length]
    shortest = min(lengths.lengths(length)[-1] if lengths else length for length in longest)
    if shortest < 3 * copying.shortest:
        raise ConfigError(
            f"copying.shortest={copying.shortest} in sequences of {shortest} tokens: a piece is at most a third of its "
            f"sequence. Use copying.shortest={max(2, shortest // 3)}, or longer sequences."
        )


def _nearest_divisor(value: int, near: int) -> int:
    return min(_divisors(value), key=lambda size: abs(size - near))


def _check_divides(name: str, value: int, divisor: str, by: int) -> None:
    if value % by:
        smaller = " or ".join(str(size) for size in _divisors(value) if size < by)
        raise ConfigError(
            f"{name}={value} is not a multiple of {divisor}={by}. Try {divisor}={smaller}, or "
            f"{name}={_next(value, by)}."
        )


def _next(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _divisors(value: int) -> Iterator[int]:
    return (size for size in range(1, value + 1) if value % size == 0)
