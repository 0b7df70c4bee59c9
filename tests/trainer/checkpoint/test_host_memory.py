"""How much host memory a save takes, and when training waits for it; the list of shards kept between saves."""

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cupola_platform.artifacts import Artifact
from cupola_trainer import models, optim, runtime
from cupola_trainer.checkpoint import Checkpointer, SaveFailedError, staging
from cupola_trainer.checkpoint.shards import Shard, weight_shards
from cupola_trainer.checkpoint.staging import Staging, Transfer, host_memory
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import CheckpointConfig, LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.optim import Trainee

LAYOUT = LayoutConfig()
MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=72,  # no multiple of 64 bytes: boxes are padded
    num_layers=2,
    num_attention_heads=3,
    num_query_groups=3,
    ffn_hidden_size=136,
    max_position_embeddings=32,
)
SHARE = 12 * parameter_count(MODEL)
"""Bytes of the model's weights and two moments in fp32, without padding."""


@pytest.fixture
def trainee() -> Iterator[Trainee]:
    runtime.start(LAYOUT, seed=0)
    yield optim.build(models.build(MODEL, LAYOUT), LAYOUT, OptimizerConfig(), 10)
    runtime.stop()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of 4 KiB; the bytes of each buffer that is allocated."""
    monkeypatch.setattr(staging, "BLOCK", 4096)
    allocated = []

    def allocate(size: int) -> torch.Tensor:
        allocated.append(size)
        return torch.full((size,), 255, dtype=torch.uint8)  # not zeros: padding must not be what was there

    monkeypatch.setattr(runtime, "host_memory", allocate)
    return allocated


def save(saver: Checkpointer, folder: Path) -> Artifact:
    what: dict[str, Any] = {"consumed_samples": 1, "seed": 0, "objective": "next_token", "tokenizer": None}
    return saver.begin(folder, model=MODEL, layout=LAYOUT, step=1, **what).finish()


def saver_of(trainee: Trainee, limit: int) -> Checkpointer:
    return Checkpointer(trainee.chunks, trainee.optimizer, trainee.scheduler, staging=Staging(limit))


def test_a_share_of_many_times_the_memory_is_saved_to_the_same_bytes(
    trainee: Trainee, small_blocks: list[int], tmp_path: Path
) -> None:
    whole = saver_of(trainee, 1 << 30)
    digest = save(whole, tmp_path / "whole").digest
    assert sum(small_blocks) == whole.staging.nbytes == host_memory(whole.share.sizes, 1 << 30, 1)[0]
    assert SHARE < sum(map(sum, whole.share.sizes)) <= whole.staging.nbytes < SHARE + 3 * 4096
    small_blocks.clear()
    bounded = saver_of(trainee, 20_000)
    for name in ("first", "second"):  # the second reuses the memory
        assert save(bounded, tmp_path / name).digest == digest
    assert small_blocks == [4096] * 4, "as many whole blocks as the limit holds, for a share of 80 times as much"
    assert host_memory(bounded.share.sizes, 20_000, 1) == (4 * 4096, 4 * 4096)


def test_the_most_loaded_process_and_node_count() -> None:
    block = staging.BLOCK
    sizes = [(block, 1), (3 * block, 0), (block, block), (9 * block, 2 * block)]
    assert host_memory(sizes, 8 * block, ranks_per_node=2) == (8 * block, 10 * block)
    assert host_memory(sizes, 0, ranks_per_node=4) == (2 * block, 8 * block)


def test_copying_waits_for_the_disk_only_with_what_does_not_fit(small_blocks: list[int]) -> None:
    shard = Shard("weight", (10_000,), (0,), torch.arange(10_000.0))  # 9.8 blocks
    for limit, sent in ((40_960, 10), (8_192, 2)):
        disk, written, turns = threading.Event(), bytearray(), threading.Semaphore(0)

        def write(block: memoryview, disk: Any = disk, written: Any = written) -> None:
            disk.wait()
            written.extend(block)

        transfer = Transfer(Staging(limit))
        with ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(1) as copying:
            uses = [(writing, write), (writing, lambda _, turns=turns: turns.release())]
            copied = copying.submit(transfer.send, [shard], uses)
            if limit > 40_000:
                copied.result(timeout=60)
            else:
                with pytest.raises(TimeoutError):
                    copied.result(timeout=0.5)
            assert len(transfer._pending) == sent
            assert not written
            disk.set()
            copied.result(timeout=60)
            transfer.settle()
        assert bytes(written) == shard.data.numpy().tobytes()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_does_not_hold_up_training_that_waits_for_memory(
    trainee: Trainee, small_blocks: list[int], tmp_path: Path
) -> None:
    saver = saver_of(trainee, 20_000)
    with full_disk(), pytest.raises(SaveFailedError, match=r"^full could not be saved: File too large\.$"):
        save(saver, tmp_path / "full")
    assert not list(tmp_path.iterdir())
    assert save(saver, tmp_path / "room").digest == save(saver_of(trainee, 1 << 30), tmp_path / "other").digest


def test_less_memory_than_four_blocks_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"host_memory\n  Input should be greater than or equal to 0.0625"):
        CheckpointConfig(host_memory=0.06)
    assert Staging(int(CheckpointConfig(host_memory=1 / 16).host_memory * 2**30)).count == 4


def test_the_list_of_shards_is_kept_until_a_tensor_is_replaced(trainee: Trainee, tmp_path: Path) -> None:
    saver = saver_of(trainee, 1 << 30)
    save(saver, tmp_path / "first")
    kept = saver.share.now()
    assert saver.share.now() is kept
    (part,) = (part for part in trainee.optimizer.chained_optimizers if not part.is_stub_optimizer)
    main = part.optimizer.param_groups[0]["params"][0]
    part.optimizer.state[main]["exp_avg"].fill_(2.0)
    assert saver.share.now() is kept, "a changed value is no other tensor"
    part.optimizer.state[main]["exp_avg"] = torch.full_like(main, 3.0)
    moved = saver.share.now()
    assert moved is not kept
    parameter = next(iter(trainee.chunks[0].parameters()))
    parameter.data = torch.full_like(parameter, 4.0)
    assert saver.share.now() is not moved
    save(saver, tmp_path / "second")
    state = StoredState(tmp_path / "second" / "state", tmp_path / "second" / "optimizer")
    (key,) = (shard.key for shard in weight_shards(trainee.chunks) if shard.data.data_ptr() == parameter.data_ptr())
    assert state.read(key).unique().tolist() == [4.0]
    values = {key: state.read(key).unique().tolist() for key in state.boxes if key.startswith("optimizer.exp_avg.")}
    assert [0.0, 3.0] in values.values(), "of one of two layers"


def test_all_ranks_find_their_shards_again_if_a_tensor_of_one_was_replaced(
    trainee: Trainee, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = saver_of(trainee, 1 << 30).share
    kept = share.now()
    heard: list[bool] = []

    def another_moved(moved: bool) -> bool:
        heard.append(moved)
        return True

    monkeypatch.setattr(runtime, "any_rank", another_moved)
    assert share.now() is not kept
    assert heard == [False]


@pytest.mark.slow  # a process of its own, 460 MB on disk
def test_a_process_grows_by_no_more_than_the_bound_while_it_saves(tmp_path: Path) -> None:
    script = Path(__file__).with_name("saving_process.py")
    done = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True)
    share, unbounded, bounded = map(int, done.stdout.split()[-3:])
    assert share > 6 * (64 << 20)
    assert unbounded > share // 2, "it reuses what the bounded save left"
    assert bounded < (64 << 20) + (32 << 20), "the bound of 64 MiB and the save's threads and lists"
