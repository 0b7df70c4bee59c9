"""Tensors of a checkpoint whose large files are only in the store."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola_platform.artifacts import seal, verify
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared import partly
from cupola_platform.unshared.partly import Partly
from cupola_trainer.checkpoint.shards import Shard
from cupola_trainer.checkpoint.staging import Staging, Transfer, write
from cupola_trainer.checkpoint.storage import StoredState

PARTS = ("state", "optimizer")
MOMENT = "optimizer.exp_avg.weight"
ROWS = torch.arange(12, dtype=torch.float32).view(6, 2)


@pytest.fixture
def checkpoint(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight of six rows and its moment, written by two ranks; only the index files and the manifest are on this node."""
    folder = tmp_path / "checkpoint"
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    for rank in (0, 1):
        held = {
            part: [Shard(key, (6, 2), (3 * rank, 0), values[3 * rank : 3 * rank + 3])]
            for part, key, values in zip(PARTS, ("weight", MOMENT), (ROWS, -ROWS), strict=True)
        }
        write(folder, rank, held, Transfer(Staging()))
    seal(folder, kind="checkpoint")
    store = S3Store(
        f"s3://{s3.bucket}/{tmp_path.name}", cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url
    )
    shards = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.bin")}
    store.objects("there").upload(shards)
    for path in shards.values():
        path.unlink()
    Elsewhere(at="there").write(folder)
    variables = {
        "CUPOLA_STORE_URL": f"s3://{s3.bucket}/{tmp_path.name}", "CUPOLA_S3_ENDPOINT_URL": s3.endpoint_url,
        "CUPOLA_HOME": str(tmp_path / "home"), "CUPOLA_JOB_SECTION": "jobs/x", "CUPOLA_JOB_FOLDER": "x",
        "CUPOLA_JOB_CACHE": "1",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    partly.node_cache.cache_clear()
    monkeypatch.setattr(partly, "PATIENCE", 1.0)
    monkeypatch.setattr(Partly, "fetched", 0)
    return folder


def test_only_the_boxes_that_a_rank_needs_are_fetched_and_once_for_a_node(checkpoint: Path) -> None:
    verify(checkpoint)
    mine = Shard("weight", (6, 2), (1, 0), torch.zeros(2, 2))
    state = StoredState(checkpoint / "state")
    state.fetch([(mine, "weight")])
    assert Partly.fetched == 3 * 2 * 4, "the first rank's box, not the second's"
    state.fill(mine)
    assert torch.equal(mine.data, ROWS[1:3])
    assert torch.equal(StoredState(checkpoint / "state").read("weight"), ROWS)
    assert Partly.fetched == 6 * 2 * 4, "no moments"
    resuming = StoredState(checkpoint / "state", checkpoint / "optimizer")
    resuming.fetch([(replace(mine, key=MOMENT), MOMENT)])
    assert Partly.fetched == 6 * 2 * 4 + 3 * 2 * 4, "the first rank's moments, not the second's"


def test_a_box_that_was_changed_or_never_uploaded_is_refused(checkpoint: Path, s3: Any, tmp_path: Path) -> None:
    key = f"{tmp_path.name}/there/state/rank_00001.bin"
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x" * 24)
    with pytest.raises(CorruptArtifactError, match=r"rank_00001\.bin was changed in the store: bytes 0 to 24"):
        StoredState(checkpoint / "state").read("weight")
    s3.client.delete_object(Bucket=s3.bucket, Key=key)
    with pytest.raises(CorruptArtifactError, match="No node has uploaded it for 1 s"):
        StoredState(checkpoint / "state").read("weight")


def test_a_checkpoint_without_digests_of_its_tensors_is_refused(checkpoint: Path) -> None:
    for path in (checkpoint / "state").glob("*.json"):
        index = json.loads(path.read_bytes())
        for tensor in index["tensors"]:
            del tensor["blake3"]
        path.write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="no digest for each tensor, so its parts cannot be fetched alone"):
        StoredState(checkpoint / "state").read("weight")
