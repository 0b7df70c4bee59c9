"""Annotations in the registry, and the preferences made from them."""

import json
from pathlib import Path

import pytest

from cupola_platform.annotation import export, pairs_of, sides
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.workspace import Workspace


def pair(name: str) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {name}?"}]
    return {"id": name, "messages": messages, "chosen": f"{name} good", "rejected": f"{name} bad", "task": None}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Workspace, Artifact]:
    workspace = Workspace.open(tmp_path / "home")
    folder = tmp_path / "given"
    folder.mkdir()
    same = {**pair("same"), "rejected": "same good"}
    for split, rows in (("train", [pair("a"), pair("b"), pair("c"), pair("d"), same]), ("heldout", [pair("h")])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace, workspace.publish(folder, kind="preferences")


def test_a_persons_last_choice_counts(source: tuple[Workspace, Artifact]) -> None:
    workspace, artifact = source
    workspace.registry.annotate(artifact.digest, "a", "Ana", "chosen")
    workspace.registry.annotate(artifact.digest, "a", "Bo", "tie")
    workspace.registry.annotate(artifact.digest, "a", "Ana", "rejected")
    said = workspace.registry.annotations(artifact.digest)
    assert {(word.annotator, word.choice) for word in said} == {("Ana", "rejected"), ("Bo", "tie")}
    assert [word.choice for word in workspace.registry.annotations(artifact.digest, "Bo")] == ["tie"]
    assert workspace.registry.annotations("0" * 64) == []


def test_the_majority_becomes_an_artifact_whose_parent_is_the_annotated_one(source: tuple[Workspace, Artifact]) -> None:
    workspace, artifact = source
    words = {"a": "rejected rejected chosen", "b": "chosen tie", "c": "chosen rejected", "d": "skip", "h": "chosen"}
    for name, choices in words.items():
        for person, choice in enumerate(choices.split()):
            workspace.registry.annotate(artifact.digest, name, f"person {person}", choice)  # type: ignore[arg-type]
    made = export(workspace, artifact)
    assert (made.manifest.kind, made.manifest.parents) == ("preferences", (artifact.digest,))
    rows = {row["id"]: row for row in pairs_of(made.path)}
    assert set(rows) == {"a", "b"}
    assert (rows["a"]["chosen"], rows["a"]["rejected"]) == ("a bad", "a good")
    assert rows["a"]["votes"] == {"chosen": 2, "rejected": 1}
    assert [row["id"] for row in pairs_of(made.path, "heldout")] == ["h"]
    report = json.loads((made.path / "report.json").read_text())
    assert (report["undecided"], report["agreement"]) == (2, 0.8)
    assert export(workspace, artifact).digest == made.digest


def test_an_export_of_nothing_or_of_another_kind_is_refused(source: tuple[Workspace, Artifact], tmp_path: Path) -> None:
    workspace, artifact = source
    with pytest.raises(ConfigError, match=r"No training pair of .* is decided yet.*Annotate page"):
        export(workspace, artifact)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match=r"is a tokens artifact, not preferences"):
        export(workspace, workspace.publish(tmp_path / "other", kind="tokens"))


def test_pairs_of_equal_responses_are_not_shown_and_sides_are_drawn_by_the_id(
    source: tuple[Workspace, Artifact],
) -> None:
    assert [row["id"] for row in pairs_of(source[1].path)] == ["a", "b", "c", "d"]
    drawn = [sides(pair(str(n)))[0] for n in range(200)]
    assert 70 < drawn.count("chosen") < 130
    assert drawn == [sides(pair(str(n)))[0] for n in range(200)]
