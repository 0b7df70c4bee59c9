"""Run by test_transformer_engine.py under torchrun, with the stand-in for Transformer Engine on the path.

te_ranks.py FOLDER         reads the checkpoint FOLDER/torch, writes FOLDER/transformer_engine-RANKS and FOLDER/RANKS.json
te_ranks.py FOLDER more    only trains in the layouts of MORE, writes FOLDER/RANKS.json

The test imports the rest of this module to compute the same without Transformer Engine.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.trainer.models import test_texts
from tests.trainer.training.layout_ranks import MODELS, OPTIMIZER, STEPS, batches_of, objective_of, trajectory

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.models import specs
from cupola_trainer.objectives import passes

LAYOUTS = {
    "dense one process": LayoutConfig(),
    "packed one process": LayoutConfig(),
    "packed selective recompute": LayoutConfig(recompute="selective"),
    "packed_moe one process": LayoutConfig(),
    "qk_norm one process": LayoutConfig(),
    "packed_gemma2 one process": LayoutConfig(),
    "packed_dual_chunk one process": LayoutConfig(),
    "dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "packed tp2 sp": LayoutConfig(tp=2, sp=True),
    "moe tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "dense cp2": LayoutConfig(cp=2),
    "packed cp2": LayoutConfig(cp=2),
    "dense pp2": LayoutConfig(pp=2),
}
MORE = {
    "packed full recompute": LayoutConfig(recompute="full"),
    "moe one process": LayoutConfig(),
    "gemma2 one process": LayoutConfig(),
    "dual_chunk one process": LayoutConfig(),
    "moe tp2 sp etp2": LayoutConfig(tp=2, sp=True),
    "qk_norm tp2": LayoutConfig(tp=2),
    "qk_norm tp2 sp": LayoutConfig(tp=2, sp=True),
    "gemma2 tp2 sp": LayoutConfig(tp=2, sp=True),
    "packed_moe cp2 ep2": LayoutConfig(cp=2, ep=2),
    "packed pp2 vp2": LayoutConfig(pp=2, vp=2),
    "moe pp2": LayoutConfig(pp=2),
}
"""Slow."""

PROMPTS = [[5, 6, 7], [9] * 12, [11, 12], [77], [5, 6, 7, 8]]
BF16 = ("packed", "packed_moe")
GENERATING = ("dense", "moe", "qk_norm")
LEAKS = ("dense", "moe", "qk_norm", "gemma2", "dual_chunk")


def continued(folder: Path, layout: LayoutConfig, *, write: bool = False) -> list[dict[str, float]]:
    """Losses and gradient norms of the second half of the steps, from a checkpoint after the first half. It is read, or
    with `write` trained and written."""
    runtime.start(layout, seed=0)
    trainee = optim.build(models.build(MODELS["moe"], layout, seed=5), layout, OPTIMIZER, STEPS)
    objective, half = objective_of("moe"), STEPS // 2

    def train(step: int) -> dict[str, float]:
        batches = batches_of(objective, step)
        means = passes.train(trainee.chunks, objective, batches)
        trainee.scheduler.step(increment=1)
        return {**means, "grad_norm": trainee.update()[0], **passes.aux_losses(MODELS["moe"], len(batches))}

    if write:
        for step in range(half):
            train(step)
        checkpoint.save(
            folder, trainee.chunks, model=MODELS["moe"], layout=layout, step=half, consumed_samples=0, seed=0,
            objective="masked_words", tokenizer=None, optimizer=trainee.optimizer, scheduler=trainee.scheduler,
        )  # fmt: skip
    else:
        checkpoint.load_training(folder, trainee.chunks, trainee.optimizer, trainee.scheduler)
    return [train(step) for step in range(half, STEPS)]


def responses(name: str, layout: LayoutConfig) -> list[tuple[list[int], list[float]]]:
    """Greedy responses to prompts of several lengths in one batch: tokens and their log-probabilities."""
    runtime.start(layout, seed=0)
    chunks: Any = models.build(MODELS[name], layout, seed=5)
    made = generate(chunks, None, PROMPTS, Sampling(max_new_tokens=10, temperature=0.0), stops=[], vocabulary=128)
    return [(completion.tokens, completion.logprobs) for completion in made]


def classes(name: str, dtype: torch.dtype, *, plain_layers: bool = False) -> dict[str, str]:
    """The class of each module of the first layer, and of the final norm."""
    [chunk] = models.build(MODELS[name], LayoutConfig(), seed=None, dtype=dtype, plain_layers=plain_layers)
    found = {path: type(module).__name__ for path, module in chunk.decoder.layers[0].named_modules()}
    return {**found, "final": type(chunk.decoder.final_layernorm).__name__}


def on_meta() -> dict[str, list[Any]]:
    """The parameters of a model built for planning: device, then shape."""
    with torch.device("meta"):
        [chunk] = models.build(MODELS["moe"], LayoutConfig(), seed=None)
    return {name: [each.device.type, *each.shape] for name, each in chunk.named_parameters()}


def leaks(name: str) -> list[str]:
    """Which of the tests of texts that share a row fail."""
    tokens = torch.randint(1, 128, (3, 32), generator=torch.Generator().manual_seed(3))
    failed = []
    for test in (
        test_texts.test_a_change_of_one_text_changes_no_loss_of_another,
        test_texts.test_no_gradient_flows_into_another_text,
        test_texts.test_a_text_that_shares_a_row_is_computed_as_if_it_were_alone,
    ):
        try:
            test(name, tokens)
        except AssertionError:
            failed.append(test.__name__)
    return failed


@contextmanager
def masks_for_texts() -> Iterator[None]:
    """Give Transformer Engine's attention a mask instead of packed rows, as we did before there was `Texts`."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    from cupola_trainer.models.attention import transformer_engine

    class MaskedAttention(TEDotProductAttention):
        def forward(self, query: Any, key: Any, value: Any, *unused: Any, packed_seq_params: Any, **more: Any) -> Any:
            hidden = None
            if packed_seq_params is not None:
                blocks = [torch.block_diag(*(torch.ones(n, n) for n in row)) for row in packed_seq_params.lengths]
                hidden = torch.stack(blocks)[:, None].tril() == 0
            return super().forward(query, key, value, hidden, AttnMaskType.causal)

    ours = transformer_engine.PackedAttention
    transformer_engine.PackedAttention = MaskedAttention  # type: ignore[misc, assignment]
    yield
    transformer_engine.PackedAttention = ours  # type: ignore[misc]


@contextmanager
def fused_fp32() -> Iterator[None]:
    """Let fp32 take the path of bf16, so that figures can be compared closely."""
    from transformer_engine.pytorch import attention

    attention.FUSED_DTYPES.add(torch.float32)
    ours, specs.FUSED_DTYPES = specs.FUSED_DTYPES, (*specs.FUSED_DTYPES, torch.float32)
    yield
    attention.FUSED_DTYPES.remove(torch.float32)
    specs.FUSED_DTYPES = ours


@contextmanager
def counted_rotations() -> Iterator[list[int]]:
    """The sizes of the sequences that Transformer Engine's kernel rotates."""
    from megatron.core.extensions import transformer_engine as extension

    sizes, original = [], extension.apply_rotary_pos_emb

    def rotate(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(x.size(0))
        return original(x, *args, **kwargs)

    extension.apply_rotary_pos_emb = rotate
    yield sizes
    extension.apply_rotary_pos_emb = original


def refusals() -> dict[str, str]:
    """What calls that Transformer Engine does not support raise in the stand-in."""
    from transformer_engine.pytorch import DotProductAttention
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    attention = DotProductAttention(2, 8)
    starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    packed: dict[str, Any] = {
        "qkv_format": "thd", "attn_mask_type": "padding_causal", "cu_seqlens_q": starts, "cu_seqlens_kv": starts,
        "max_seqlen_q": 3, "max_seqlen_kv": 3,
    }  # fmt: skip

    def attend(shape: tuple[int, ...] = (5, 2, 8), dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
        return attention(*torch.zeros(3, *shape, dtype=dtype), **packed | changes)

    calls: dict[str, Callable[[], Any]] = {
        "packed": attend,
        "packed in fp32": lambda: attend(dtype=torch.float32),
        "packed with the mask type of rows": lambda: attend(attn_mask_type="causal"),
        "packed without starts": lambda: attend(cu_seqlens_q=None),
        "packed with starts in int64": lambda: attend(cu_seqlens_q=starts.long()),
        "packed rows": lambda: attend((5, 1, 2, 8)),
        "heads of another size": lambda: attend((5, 2, 16)),
        "more heads": lambda: attend((5, 4, 8)),
        "rotary for each row": lambda: apply_rotary_pos_emb(
            torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8), fused=True
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = ""
        except (AssertionError, ValueError, RuntimeError) as error:
            found[name] = type(error).__name__
    return found


def trained(layouts: Mapping[str, LayoutConfig]) -> dict[str, Any]:
    """Losses and gradient norms in each layout of this world size, and the sequences that were rotated."""
    found: dict[str, Any] = {}
    for name, layout in sorted(layouts.items(), key=lambda item: str(item[1])):  # equal ones share their groups
        if layout.world_size == runtime.world_size():
            with counted_rotations() as sizes:
                found[name] = trajectory(MODELS[name.split()[0]], layout, "fp32", objective_of(name))
            found[f"rotations of {name}"] = sorted(set(sizes))
    return found


def offloading() -> dict[str, Any]:
    """A step with layers that keep their activations on the host, and how many bytes those were."""
    from transformer_engine.pytorch import cpu_offload

    cpu_offload.OFFLOADED.clear()
    found = trajectory(MODELS["packed"], LayoutConfig(offload_activations=True), "fp32", objective_of("packed"))
    return {"steps": found, "bytes": sum(cpu_offload.OFFLOADED)}


def checked_on_one_rank() -> dict[str, Any]:
    runtime.start(LayoutConfig(), seed=0)
    found: dict[str, Any] = {
        "classes": {name: classes(name, torch.bfloat16) for name in MODELS},
        "classes in fp32": classes("dense", torch.float32),
        "plain classes": classes("dense", torch.bfloat16, plain_layers=True),
        "meta": on_meta(),
        "refusals": refusals(),
        "offloading": offloading(),
    }
    for name in BF16:
        found[f"{name} in bf16"] = trajectory(MODELS[name], LayoutConfig(), "bf16", objective_of(name))
    with fused_fp32():
        found["leaks"] = {name: leaks(name) for name in LEAKS}
        with masks_for_texts():
            found["leaks with masks"] = leaks("dense")
    return found


def main(folder: Path, more: bool) -> None:
    ranks = runtime.world_size()
    found = checked_on_one_rank() if ranks == 1 and not more else {}
    with fused_fp32():
        found |= trained(MORE if more else LAYOUTS)
        if not more:
            layout = LayoutConfig(tp=ranks, sp=ranks > 1)
            found["responses"] = {name: responses(name, layout) for name in GENERATING}
            found["read"] = continued(folder / "torch", layout)
            continued(folder / f"transformer_engine-{ranks}", layout, write=True)
    if runtime.rank() == 0:
        (folder / f"{ranks}.json").write_text(json.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["more"])
