"""Checks of precision, offloading and memory before anything starts. Imports no torch."""

from cupola_platform.errors import ConfigError
from cupola_trainer.config.layout import LayoutConfig
from cupola_trainer.config.memory import Forecast
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.precision import Fp8Config, Precision
from cupola_trainer.config.training import BatchConfig, TrainSettings

FINGERPRINTED = False  # only refuses, computes nothing

UNIT = {"delayed": 16, "current": 16, "block": 16, "mxfp8": 32}
"""Every side of an FP8 product is a multiple of this."""
BLOCK = 128
"""Values scaled together by the recipe `block`; ranks that exchange parts of a sequence exchange whole blocks."""


def validate_precision(model: ModelConfig, settings: TrainSettings, layout: LayoutConfig) -> None:
    """Check that a model can be trained in the precision that the settings ask for.

    Raises:
        ConfigError: a rule is violated.
    """
    if settings.precision != "fp8":
        return
    if settings.lora:
        raise ConfigError("precision=fp8 with lora: adapters train torch's layers, which have no FP8. Use bf16.")
    _check_layers(model, layout, settings.fp8)
    _check_features(model, layout, settings.fp8)
    _check_tokens(layout, settings.batch, settings.fp8)


def refuse_without_gpu(precision: Precision, layout: LayoutConfig, where: str) -> None:
    """Check that nothing is asked for that only a GPU has.

    Args:
        where: what has no GPU, such as `this machine`.

    Raises:
        ConfigError: names the setting.
    """
    if precision == "fp8":
        raise ConfigError(f"precision=fp8 needs a GPU, and {where} has none. Use precision=bf16.")
    for name in ("offload_optimizer", "offload_activations"):
        if getattr(layout, name):
            raise ConfigError(f"layout.{name}=true needs a GPU to offload from, and {where} has none. Leave it out.")


def check_memory(forecast: Forecast, held: float) -> None:
    """Check that a rank can hold what training keeps.

    Args:
        held: bytes that a rank may use.

    Raises:
        ConfigError: gives the forecast, what there is, and how many tokens would fit.
    """
    if forecast.total <= held:
        return
    most = forecast.tokens_within(held)
    fits = f"About {most:,} tokens a micro-batch fit" if most else "Not even the model fits"
    needed, state, there = (f"{size / 2**30:,.1f} GiB" for size in (forecast.total, forecast.state, held))
    raise ConfigError(
        f"micro_batch_size x sequence_length = {forecast.tokens:,} tokens need about {needed} a rank, {state} of it "
        f"for weights, gradients and optimizer, and a rank has {there}. {fits}. Shorten the sequences, raise tp, pp "
        "or cp, or use recompute=full."
    )


def _check_layers(model: ModelConfig, layout: LayoutConfig, fp8: Fp8Config) -> None:
    first, last = fp8.in_bf16
    if fp8.recipe == "delayed" and (first or last):
        raise ConfigError(
            f"fp8.recipe=delayed with {first} first and {last} last layers in bf16: it scales all layers together. "
            "Use recipe=current, or first_layers=0 and last_layers=0."
        )
    if fp8.recipe == "delayed" and layout.ep > 1:
        raise ConfigError(
            f"fp8.recipe=delayed with ep={layout.ep}: ranks would share the scales of different experts. Use "
            "recipe=current."
        )
    stage = model.num_layers // layout.pp
    for name, count in (("first_layers", first), ("last_layers", last)):
        if count > stage:
            raise ConfigError(
                f"fp8.{name}={count} is more than the {stage} layers of a pipeline stage. Use {stage} or fewer."
            )
    if first + last >= model.num_layers:
        raise ConfigError(
            f"fp8: {first} first and {last} last layers in bf16 leave none of num_layers={model.num_layers} in FP8. "
            "Lower fp8.first_layers and fp8.last_layers, or use precision=bf16."
        )


def _check_features(model: ModelConfig, layout: LayoutConfig, fp8: Fp8Config) -> None:
    unit = UNIT[fp8.recipe]
    whole = BLOCK if fp8.recipe == "block" and layout.sp else unit
    heads, groups, size = model.num_attention_heads, model.num_query_groups, model.head_size
    sizes = {
        "hidden_size": (model.hidden_size, 1, whole),
        "num_attention_heads x head_dim": (heads * size, layout.tp, unit),
        "(num_attention_heads + 2 x num_query_groups) x head_dim": ((heads + 2 * groups) * size, layout.tp, unit),
    }  # fmt: skip
    if model.moe:
        etp = layout.etp or (1 if layout.ep > 1 else layout.tp)
        sizes["moe.expert_ffn_hidden_size"] = (model.moe.expert_ffn_hidden_size, etp, unit)
        sizes["moe.shared_expert_ffn_hidden_size"] = (model.moe.shared_expert_ffn_hidden_size or 0, layout.tp, unit)
    else:
        sizes["ffn_hidden_size"] = (model.ffn_hidden_size, layout.tp, unit)
    for name, (features, ranks, multiple) in sizes.items():
        _check_multiple(name, features, ranks, multiple, fp8)


def fp8_unit(layout: LayoutConfig, precision: Precision, fp8: Fp8Config) -> int:
    """Every micro-batch has a multiple of this many tokens."""
    return _tokens_of_a_rank(layout, fp8) * layout.cp * (layout.tp if layout.sp else 1) if precision == "fp8" else 1


def _tokens_of_a_rank(layout: LayoutConfig, fp8: Fp8Config) -> int:
    return BLOCK if fp8.recipe == "block" and layout.sp else UNIT[fp8.recipe]


def _check_tokens(layout: LayoutConfig, batch: BatchConfig, fp8: Fp8Config) -> None:
    unit = _tokens_of_a_rank(layout, fp8)
    ranks = layout.cp * (layout.tp if layout.sp else 1)
    tokens = batch.micro_batch_size * batch.sequence_length
    _check_multiple("micro_batch_size x sequence_length", tokens, ranks, unit, fp8)


def _check_multiple(name: str, size: int, ranks: int, unit: int, fp8: Fp8Config) -> None:
    if size % (unit * ranks):
        shared = f" / {ranks} ranks = {size / ranks:g}" if ranks > 1 else ""
        raise ConfigError(
            f"{name}={size}{shared} is not a multiple of {unit}, which fp8.recipe={fp8.recipe} needs. Try "
            f"{-(-size // (unit * ranks)) * unit * ranks}, or precision=bf16."
        )
