import shutil
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import FileEntry, seal, verify
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.store import LocalStore
from cupola_platform.store.plain import Objects
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared.parts import Parts


@pytest.fixture
def objects(s3: Any, tmp_path: Path) -> Objects:
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    return S3Store(url, cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url).objects("job")


def node(objects: Objects, home: Path, step: int, rank: int) -> Parts:
    """A node that holds one rank's part of a checkpoint of two ranks; the first one also training.json."""
    folder = home / f"checkpoints/step_{step:08}"
    parts = {f"state/rank_{each:05}.bin": f"{step} {each}" * 10 for each in (0, 1)}
    mine = f"state/rank_{rank:05}.bin"
    (folder / "state").mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    (folder / mine).write_text(parts[mine])
    elsewhere = {path: (len(text), digest_bytes(text.encode())) for path, text in parts.items() if path != mine}
    seal(folder, kind="checkpoint", config={"step": step}, elsewhere=elsewhere)
    Elsewhere(at="", held=(mine, *(["training.json"] if rank == 0 else []))).write(folder)
    return Parts(objects, "job", home)


def send(node: Parts) -> None:
    node.stage()
    node.send()


def test_a_checkpoint_is_whole_once_every_node_has_sent_its_part(objects: Objects, tmp_path: Path) -> None:
    first, second = node(objects, tmp_path / "a", 5, 0), node(objects, tmp_path / "b", 5, 1)
    assert first.made()[0].artifact.digest == second.made()[0].artifact.digest
    send(first)
    assert first.whole() == second.whole() == []
    send(second)
    (whole,) = first.whole()
    assert (whole.folder, whole.step) == ("checkpoints/step_00000005", 5)

    third = Parts(objects, "job", tmp_path / "c")
    third.place(third.whole()[0])
    folder = tmp_path / "c" / whole.folder
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        ".elsewhere.json", "manifest.json", "training.json",
    ]  # fmt: skip
    assert verify(folder).digest == whole.manifest.digest
    assert third.made() == [], "it holds nothing that the store lacks"


def test_a_part_that_is_gone_or_torn_never_makes_a_checkpoint_whole(objects: Objects, tmp_path: Path, s3: Any) -> None:
    first, second = node(objects, tmp_path / "a", 5, 0), node(objects, tmp_path / "b", 5, 1)
    send(first)
    (made,) = second.made()
    shutil.rmtree(tmp_path / "b/checkpoints")
    send(second)
    assert first.whole() == []
    objects.write(f"parts/{made.name}/state/rank_00001.bin", b"torn")
    again = Parts(objects, "job", tmp_path / "a")
    send(again)
    assert first.whole() == []


def test_training_may_remove_a_checkpoint_before_it_is_sent_unless_it_went_back(
    objects: Objects, tmp_path: Path
) -> None:
    for step in (5, 10):
        first, second = node(objects, tmp_path / "a", step, 0), node(objects, tmp_path / "b", step, 1)
    first.stage()
    second.stage()
    begun = f"{second.made()[0].name}/training.json"
    first.objects.upload({begun: tmp_path / "a/checkpoints/step_00000005/training.json"})
    for name in "ab":
        shutil.rmtree(tmp_path / name / "checkpoints/step_00000005")
    first.send()
    second.send()
    assert [whole.step for whole in first.whole()] == [5, 10], "the older one was begun by another node"
    assert not list(tmp_path.glob("*/.upload/*/*"))

    for name in "ab":
        each = node(objects, tmp_path / name, 15, "ab".index(name))
        each.stage()
        shutil.rmtree(tmp_path / name / "checkpoints/step_00000015")
        each.send()
    assert [whole.step for whole in each.whole()] == [5, 10]


def test_a_changed_part_is_refused_by_name(objects: Objects, tmp_path: Path) -> None:
    for rank, name in enumerate("ab"):
        each = node(objects, tmp_path / name, 5, rank)
        send(each)
    (whole,) = each.whole()
    objects.write(f"parts/{whole.name}/training.json", b"[]")
    with pytest.raises(CorruptArtifactError, match=r"training\.json is corrupt"):
        Parts(objects, "job", tmp_path / "c").place(whole)
    assert not list(tmp_path.glob("c/**/manifest.json"))


def test_checkpoints_that_the_job_removed_leave_the_store_but_one_always_stays(
    objects: Objects, tmp_path: Path
) -> None:
    for step in (5, 10):
        for rank, name in enumerate("ab"):
            each = node(objects, tmp_path / name, step, rank)
            send(each)
    assert [whole.step for whole in each.whole()] == [5, 10]
    each.drop([tmp_path / "b/checkpoints/step_00000005"])  # rolled back
    assert [whole.step for whole in each.whole()] == [5]
    each.drop([])
    assert [whole.step for whole in each.whole()] == [5]
    assert isinstance(each.whole()[0].manifest.files[0], FileEntry)
