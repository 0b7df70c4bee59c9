import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola_platform.artifacts import Artifact, verify
from cupola_platform.errors import CorruptArtifactError, NotFoundError
from cupola_platform.workspace import SourceSummary, Workspace

MakeFolder = Callable[..., Path]


@pytest.fixture
def tokens(ws: Workspace, make_folder: MakeFolder) -> Artifact:
    rows = [
        {"source": source, "path": path, "bytes": size, "blake3": "0" * 64}
        for source, path, size in (("python", "a.py", 3), ("man", "ls.1", 5), ("python", "b.py", 4))
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    return ws.publish(
        make_folder("tokens", {"sources.jsonl": text}), kind="tokens", stage="prepare", fingerprint="a" * 64
    )


@pytest.fixture
def checkpoint(ws: Workspace, make_folder: MakeFolder, tokens: Artifact) -> Artifact:
    folder = make_folder("checkpoint", {"state/weights": "1234"})
    return ws.publish(
        folder, kind="checkpoint", parents=[tokens], stage="pretrain", fingerprint="b" * 64, metrics={"loss": 2.5}
    )


def test_a_published_artifact_is_found_by_its_fingerprint(ws: Workspace, checkpoint: Artifact) -> None:
    found = ws.find("b" * 64)
    assert found == checkpoint
    assert checkpoint.path == ws.root / "store/artifacts" / checkpoint.digest
    assert ws.find("c" * 64) is None
    assert [row.stage for row in ws.registry.parents(checkpoint.digest)] == ["prepare"]


def test_a_damaged_artifact_is_not_found_and_can_be_made_again(
    ws: Workspace, checkpoint: Artifact, make_folder: MakeFolder
) -> None:
    weights = checkpoint.path / "state/weights"
    weights.chmod(0o644)
    weights.write_text("1235")
    assert ws.find("b" * 64) is None
    ws.publish(make_folder("again", {"state/weights": "1234"}), kind="checkpoint", fingerprint="b" * 64)
    assert verify(checkpoint.path)
    assert ws.find("b" * 64) is not None


def test_publishing_the_same_content_for_another_fingerprint_finds_it_too(
    ws: Workspace, checkpoint: Artifact, make_folder: MakeFolder
) -> None:
    folder = make_folder("again", {"state/weights": "1234"})
    again = ws.publish(folder, kind="checkpoint", stage="other", fingerprint="d" * 64)
    assert again == checkpoint
    assert ws.find("d" * 64) == ws.find("b" * 64) == checkpoint


def test_an_artifact_is_resolved_by_alias_first_characters_and_folder(ws: Workspace, checkpoint: Artifact) -> None:
    ws.registry.set_alias("champion", checkpoint.digest, "the only one")
    for reference in ("champion", checkpoint.id, checkpoint.digest, checkpoint.digest[:4], str(checkpoint.path)):
        assert ws.resolve(reference).digest == checkpoint.digest


def test_an_unknown_name_lists_close_ones(ws: Workspace, checkpoint: Artifact, tmp_path: Path) -> None:
    ws.registry.set_alias("champion", checkpoint.digest, "the only one")
    with pytest.raises(NotFoundError, match=r"named 'champoin'. Did you mean champion\?"):
        ws.resolve("champoin")
    with pytest.raises(NotFoundError, match=f"Did you mean {checkpoint.id}"):
        ws.resolve(checkpoint.id[:10] + "zz")
    with pytest.raises(NotFoundError, match="at least 4 characters"):
        ws.resolve(checkpoint.id[:3])
    with pytest.raises(CorruptArtifactError, match=r"manifest.json is missing"):
        ws.resolve(str(tmp_path))


def test_an_id_that_could_be_several_lists_them(ws: Workspace, make_folder: MakeFolder) -> None:
    names: dict[str, list[str]] = {}
    number = 0
    while all(len(found) < 2 for found in names.values()):  # two that share four characters: a few hundred draws
        folder = make_folder(f"n{number}", {"x": str(number)})
        artifact = _sealed(folder)
        names.setdefault(artifact.digest[:4], []).append(artifact.digest)
        ws.registry.add_artifact(artifact.manifest)
        number += 1
    prefix, both = next((prefix, found) for prefix, found in names.items() if len(found) == 2)
    with pytest.raises(NotFoundError, match=f"{prefix!r} could be any of") as caught:
        ws.resolve(prefix)
    assert all(digest[:12] in str(caught.value) for digest in both)


def _sealed(folder: Path) -> Artifact:
    from cupola_platform.artifacts import seal

    return seal(folder, kind="tokens")


def test_the_lineage_leads_down_to_the_sources(ws: Workspace, checkpoint: Artifact, tokens: Artifact) -> None:
    node = ws.lineage(checkpoint)
    assert (node.kind, node.stage, node.metrics) == ("checkpoint", "pretrain", {"loss": 2.5})
    (parent,) = node.parents
    assert (parent.kind, parent.id, parent.parents) == ("tokens", tokens.id, ())
    assert parent.sources == (SourceSummary("man", 1, 5), SourceSummary("python", 2, 7))
    assert [file.path for file in ws.source_files(tokens)] == ["a.py", "ls.1", "b.py"]


def test_a_lost_registry_is_rebuilt_from_the_store(ws: Workspace, checkpoint: Artifact, tokens: Artifact) -> None:
    ws.registry.close()
    for file in ws.root.glob("registry.db*"):
        file.unlink()
    again = Workspace.open(ws.root)
    assert again.find("b" * 64) == checkpoint
    assert again.lineage(checkpoint).parents[0].id == tokens.id
    assert again.adopt() == 0


def test_removing_the_workspace_removes_everything(ws: Workspace, checkpoint: Artifact) -> None:
    subprocess.run(["rm", "-rf", ws.root], check=True)
    assert not ws.root.exists()


def test_another_artifact_under_a_digest_is_neither_found_nor_adopted_nor_returned(
    ws: Workspace, checkpoint: Artifact, tokens: Artifact
) -> None:
    stored = ws.store.get(checkpoint.digest).path
    shutil.rmtree(stored)
    shutil.copytree(tokens.path, stored)
    assert ws.find("b" * 64) is None
    with pytest.raises(CorruptArtifactError, match=f"belongs to artifact {tokens.id}, not to {checkpoint.id}"):
        ws.resolve(checkpoint.id)
    for path in ws.root.glob("registry.db*"):
        path.unlink()
    fresh = Workspace.open(ws.root)
    assert fresh.adopt() == 1
    assert [row.digest for row in fresh.registry.artifacts()] == [tokens.digest]


def test_a_folder_that_is_named_like_an_id_is_not_taken_for_it(
    ws: Workspace, checkpoint: Artifact, tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tokens.path, tmp_path / checkpoint.id)
    shutil.copytree(tokens.path, tmp_path / "0123abcd")
    assert ws.resolve(checkpoint.id).digest == checkpoint.digest
    assert ws.resolve(f"./{checkpoint.id}").digest == tokens.digest
    with pytest.raises(
        NotFoundError, match=r"No artifact, alias or folder named '0123abcd'\. The folder of that name is \./"
    ):
        ws.resolve("0123abcd")
