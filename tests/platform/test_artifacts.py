import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cupola_platform.artifacts import canonical_json, code_version, digest_file, fingerprint, read, seal, verify
from cupola_platform.errors import ConfigError, CorruptArtifactError

MakeFolder = Callable[..., Path]


def test_a_sealed_folder_verifies_and_is_named_by_its_content(make_folder: MakeFolder) -> None:
    folder = make_folder("a", {"model.json": "{}", "state/weights": "1234"})
    artifact = seal(folder, kind="checkpoint", parents=["p" * 64], stage="pretrain", metrics={"loss": 2})
    lines = b"".join(
        sorted(f"{path}\0{blake3((folder / path).read_bytes()).hexdigest()}\n".encode() for path in ("model.json", "state/weights"))
    )  # fmt: skip
    assert artifact.digest == blake3(lines).hexdigest()
    assert artifact.id == artifact.digest[:12]
    assert verify(folder) == artifact
    assert [file.path for file in artifact.manifest.files] == ["model.json", "state/weights"]
    assert artifact.manifest.size == 6
    assert artifact.metrics == {"loss": 2.0}


def test_the_same_content_has_the_same_digest_whatever_made_it(make_folder: MakeFolder) -> None:
    first = seal(make_folder("a", {"x": "1"}), kind="tokens", stage="one")
    second = seal(make_folder("b", {"x": "1"}), kind="checkpoint", stage="two")
    assert first.digest == second.digest


def test_sealing_again_replaces_the_manifest_and_leaves_no_other_file(make_folder: MakeFolder) -> None:
    folder = make_folder("a", {"x": "1"})
    (folder / ".manifest.json.partial").write_text("torn")
    first = seal(folder, kind="tokens")
    second = seal(folder, kind="tokens", metrics={"documents": 3.0})
    assert first.digest == second.digest
    assert verify(folder).metrics == {"documents": 3.0}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "x"]


def test_the_manifest_says_what_it_was_made_with_but_not_where(make_folder: MakeFolder) -> None:
    manifest = seal(make_folder("a", {"x": "1"}), kind="tokens", config={"steps": (1, 2)}).manifest
    assert manifest.environment["torch"].startswith("2.13.0")
    assert manifest.environment["megatron-core"] == "0.16.1"
    assert manifest.config == {"steps": [1, 2]}
    assert len(manifest.code_version) == 64
    assert os.uname().nodename not in manifest.environment.values()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "b/w").write_text("12345"), r"b/w is corrupt: it has 5 bytes, the manifest says 4"),
        (lambda folder: (folder / "b/w").write_text("1235"), r"b/w is corrupt: its digest is [0-9a-f]{12}, the manifest says"),
        (lambda folder: (folder / "b/w").unlink(), r"b/w is missing"),
        (lambda folder: (folder / "b/extra").write_text("x"), r"b/extra is not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": "tok'), r"manifest.json is incomplete"),
        (lambda folder: (folder / "b/link").symlink_to("/etc/passwd"), r"b/link is not a plain file"),
    ],
    ids=["size", "byte", "missing", "extra", "no manifest", "torn manifest", "link"],
)  # fmt: skip
def test_damage_is_refused_by_name(make_folder: MakeFolder, harm: Callable[[Path], object], message: str) -> None:
    folder = make_folder("a", {"a": "", "b/w": "1234"})
    seal(folder, kind="checkpoint")
    harm(folder)
    with pytest.raises(CorruptArtifactError, match=message):
        verify(folder)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "./x", "a//x", "", "x\0y"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(make_folder: MakeFolder, path: str) -> None:
    folder = make_folder("a", {"x": "1"})
    manifest = json.loads((seal(folder, kind="tokens").path / "manifest.json").read_text())
    manifest["files"][0]["path"] = path
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match="names a file outside its folder"):
        read(folder)


def test_a_manifest_whose_file_list_was_changed_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder("a", {"x": "1"})
    seal(folder, kind="tokens")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"path": "x"', '"path": "y"'))
    with pytest.raises(CorruptArtifactError, match=r"its digest .* does not match its files"):
        read(folder)


@pytest.mark.parametrize("names", [["x", "x"], ["x", "x/y"]])
def test_a_manifest_whose_files_are_folders_of_others_is_refused(make_folder: MakeFolder, names: list[str]) -> None:
    folder = make_folder("a", {"1": "1", "2": "2"})
    manifest = json.loads((seal(folder, kind="tokens").path / "manifest.json").read_text())
    for file, name in zip(manifest["files"], names, strict=True):
        file["path"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json names 'x' twice\. Do not use"):
        read(folder)


def test_a_manifest_that_is_a_pipe_is_refused_at_once(make_folder: MakeFolder) -> None:
    folder = make_folder("a", {"x": "1"})
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json is missing"):
        read(folder)


def test_links_and_empty_folders_are_not_sealed(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder("a", {"x": "1"})
    (folder / "outside").symlink_to(tmp_path)
    with pytest.raises(CorruptArtifactError, match="outside is not a plain file"):
        seal(folder, kind="tokens")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptArtifactError, match="has no files"):
        seal(tmp_path / "empty", kind="tokens")


def test_a_metric_that_is_not_finite_is_refused_by_name(make_folder: MakeFolder) -> None:
    with pytest.raises(ConfigError, match="loss=nan is not finite"):
        seal(make_folder("a", {"x": "1"}), kind="checkpoint", metrics={"loss": float("nan")})


def test_large_files_hash_like_small_ones(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 1)
    (tmp_path / "large").write_bytes(data)
    assert digest_file(tmp_path / "large") == blake3(data).hexdigest()
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty") == blake3(b"").hexdigest()


def test_a_fingerprint_depends_on_config_parents_in_order_and_code_only() -> None:
    base = fingerprint({"a": 1, "b": [2]}, ["p", "q"], "code")
    assert fingerprint({"b": (2,), "a": 1}, ("p", "q"), "code") == base
    assert fingerprint({"a": 2, "b": [2]}, ["p", "q"], "code") != base
    assert fingerprint({"a": 1, "b": [2]}, ["q", "p"], "code") != base
    assert fingerprint({"a": 1, "b": [2]}, ["p", "q"], "other") != base


def test_a_config_that_json_cannot_represent_is_refused() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    with pytest.raises(ConfigError, match="plain JSON"):
        canonical_json({"lr": float("nan")})
    with pytest.raises(ConfigError, match="plain JSON"):
        canonical_json({"path": Path("x")})


def test_the_code_version_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package_of_mine"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    (package / "inner/part.py").write_text("X = 1")
    monkeypatch.syspath_prepend(tmp_path)
    whole, part = code_version(package.name), code_version(f"{package.name}.inner.part")
    (package / "notes.txt").write_text("not code")
    code_version.cache_clear()
    assert code_version(package.name) == whole
    (package / "inner/part.py").write_text("X = 2")
    code_version.cache_clear()
    assert code_version(package.name) != whole
    assert code_version(f"{package.name}.inner.part") != part
    with pytest.raises(ConfigError, match="no_such_package"):
        code_version("no_such_package")


def test_an_artifact_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    seal(tmp_path, kind="tokens")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["format"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match=r"another version of Cupola: its format is 1, this version reads 2"):
        read(tmp_path)
