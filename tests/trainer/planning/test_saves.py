"""The plan of a checkpoint agrees with what ranks write, and adds up where there are too many to start."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import read_model
from cupola_trainer.checkpoint.storage import file_size
from cupola_trainer.config import LayoutConfig
from cupola_trainer.config.model.presets import PRESETS
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.planning.saves import plan_save, written_by
from cupola_trainer.planning.shares import shares

sys.path.insert(0, str(Path(__file__).parent))
from plan_ranks import LAYOUTS, moments_of, precision_of, save_all  # type: ignore[import-not-found]

QWEN = PRESETS["qwen2-57b-a14b"]
assert QWEN.moe
MOE_1T = replace(
    QWEN,
    num_layers=64,
    hidden_size=7168,
    head_dim=128,
    num_attention_heads=64,
    num_query_groups=8,
    moe=replace(QWEN.moe, num_experts=384, expert_ffn_hidden_size=2048, shared_expert_ffn_hidden_size=2048),
)
ON_2048 = LayoutConfig(tp=8, sp=True, pp=16, dp=16, ep=64)


def check(folder: Path, name: str) -> None:
    planned = dict(
        shares(read_model(folder), LAYOUTS[name], runtime.dtype(precision_of(name)), runtime.dtype(moments_of(name)))
    )
    assert sorted(planned) == list(range(LAYOUTS[name].world_size))
    for rank, parts in planned.items():
        for part, boxes in parts.items():
            file = folder / part / f"rank_{rank:05d}.bin"
            wanted = json.loads(file.with_suffix(".json").read_bytes())["tensors"]
            found = json.loads(json.dumps([box.entry("") for box in boxes]))
            if LAYOUTS[name].distributed_optimizer:
                assert _places(found, "at") == _places(wanted, "at"), (name, rank, part)
                assert file_size(boxes) == file.stat().st_size
            else:  # in another order
                assert sorted(_places(found)) == sorted(_places(wanted)), (name, rank, part)
                assert abs(file_size(boxes) - file.stat().st_size) < 64


def _places(tensors: list[dict[str, Any]], *more: str) -> list[list[Any]]:
    return [[each[name] for name in ("key", "dtype", "shape", "offset", "size", *more)] for each in tensors]


def saved_by(ranks: int, torchrun: Callable[..., Any], folder: Path) -> list[str]:
    torchrun(ranks, Path(__file__).with_name("plan_ranks.py"), folder)
    return [name for name, layout in LAYOUTS.items() if layout.world_size == ranks]


def test_the_files_of_one_process_are_planned_with_each_tensor_in_its_place(tmp_path: Path) -> None:
    save_all(tmp_path)
    for name in ("dense one process", "bf16_moe one process", "bf16_states one process"):
        check(tmp_path / name, name)


@pytest.mark.slow  # two processes, seventeen layouts
def test_the_files_of_two_ranks_are_planned_with_each_tensor_in_its_place(
    tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    names = saved_by(2, torchrun, tmp_path)
    assert len(names) == 18
    for name in names:
        check(tmp_path / name, name)


@pytest.mark.slow  # four processes, nine layouts
def test_the_files_of_four_ranks_are_planned_with_each_tensor_in_its_place(
    tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    names = saved_by(4, torchrun, tmp_path)
    assert len(names) == 9
    for name in names:
        check(tmp_path / name, name)


def test_every_element_is_written_once_by_sixty_four_ranks() -> None:
    assert QWEN.moe
    model = replace(QWEN, num_layers=4, moe=replace(QWEN.moe, num_experts=16))
    layout = LayoutConfig(tp=4, sp=True, pp=2, dp=8, ep=8, etp=2)
    written: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    bytes_of: dict[str, int] = defaultdict(int)
    expected: dict[str, int] = {}
    for _, parts in shares(model, layout, runtime.dtype("bf16")):
        for box in (*parts["state"], *parts["optimizer"]):
            place = (*box.offset, *box.size)
            assert place not in written[box.key], box.key
            assert all(start + size <= end for start, size, end in zip(box.offset, box.size, box.shape, strict=True))
            written[box.key].add(place)
            bytes_of[box.key] += box.nbytes
            expected[box.key] = math.prod(box.shape) * (4 if box.key.startswith("optimizer.") else 2)
    assert bytes_of == expected
    assert sum(bytes_of.values()) == 14 * parameter_count(model)


@pytest.mark.slow  # half a minute
def test_a_mixture_of_a_trillion_parameters_on_2048_ranks_adds_up() -> None:
    assert parameter_count(MOE_1T) > 10**12
    plan = plan_save(MOE_1T, ON_2048, runtime.dtype("bf16"))
    assert plan.stored == (2 * parameter_count(MOE_1T), 12 * parameter_count(MOE_1T))
    summary = plan.summary(16 << 30, ranks_per_node=8)
    assert (summary["ranks"], summary["nodes"]) == (2048, 256)
    assert 0 <= summary["weights"] + summary["optimizer"] - sum(plan.stored) < 64 * summary["tensors"]
    even = sum(plan.stored) / 2048
    assert even < summary["written_per_rank"] < 1.1 * even
    assert summary["written_per_rank"] <= summary["host_memory_per_rank"] < summary["written_per_rank"] + (32 << 20)
    assert summary["largest_file"].startswith("optimizer/rank_")


def test_what_one_rank_writes_is_in_the_plan() -> None:
    layout, dtype = LayoutConfig(dp=4, pp=2), runtime.dtype("fp32")
    model = PRESETS["qwen2-0.5b"]
    plan = plan_save(model, layout, dtype)
    written = written_by(5, model, layout, dtype)
    assert (file_size(written["state"]), file_size(written["optimizer"])) == plan.sizes[5]
    with pytest.raises(ConfigError, match=r"num_layers=24 is not a multiple of pp=5"):
        plan_save(model, LayoutConfig(pp=5), dtype)
