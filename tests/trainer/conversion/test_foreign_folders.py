"""Importing untrusted folders: no file outside is read, and nothing hangs, crashes or is guessed."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from cupola_platform.corpus.core.qwen_tokenizer import add_control_tokens, save_tokenizer
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer.commands import main
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_

NAME = "model.layers.0.mlp.up_proj.weight"
FIRST, SECOND, INDEX = "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A one-layer Llama as saved by transformers."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(_llama()).save_pretrained(folder)
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, architectures=["LlamaForCausalLM"],
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The model in one file, with a tokenizer."""
    folder = tmp_path / "model"
    _llama().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    tokenizer = Tokenizer(models.BPE(vocab={chr(0x100 + byte): byte for byte in range(256)}, merges=[]))
    add_control_tokens(tokenizer)
    save_tokenizer(tokenizer.to_str(), folder)
    (folder / "generation_config.json").write_text("{}")
    return folder


def split(folder: Path, tensors: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> dict[str, str]:
    """Split the weights into two files, with `more` in the second. Returns the index's weight_map."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, folder / FIRST)
    save_file({name: tensors[name] for name in names[5:]} | more, folder / SECOND)
    weight_map = {name: FIRST if name in names[:5] else SECOND for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def refused(folder: Path, to: Path) -> str:
    with pytest.raises((ConfigError, NotFoundError)) as caught:
        import_(folder, to)
    assert "\n" not in str(caught.value)
    assert not to.exists()
    return str(caught.value)


def test_a_model_in_several_files_is_imported_by_its_index(
    folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    split(folder, tensors, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    import_(folder, tmp_path / "to")
    export(tmp_path / "to", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert sorted(back) == sorted(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_second_copy_of_a_tensor_is_refused(folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    stale = min(tensors)
    split(folder, tensors, {stale: torch.full_like(tensors[stale], 7.0)})
    message = f"model-2.safetensors holds a second {stale}: {INDEX} assigns it to {FIRST}. Save the model again."
    assert refused(folder, tmp_path / "to").endswith(message)


def test_a_weights_file_that_the_index_does_not_list_is_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    split(folder, tensors, {})
    save_file(tensors, folder / "model.safetensors")
    assert "holds model.safetensors, which model.safetensors.index.json does not list" in refused(
        folder, tmp_path / "to"
    )


def test_an_index_must_match_its_files(folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    weight_map = split(folder, tensors, {})
    for wrong, message in [
        (
            {name: file for name, file in weight_map.items() if name != NAME},
            f"holds {NAME}, which {INDEX} does not list",
        ),
        (weight_map | {"model.extra": FIRST}, f"model-1.safetensors lacks model.extra, which {INDEX} assigns to it"),
    ]:
        (folder / INDEX).write_text(json.dumps({"weight_map": wrong}))
        assert message in refused(folder, tmp_path / "to")


FILES = [
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "special_tokens_map.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_link_outside_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside")
    assert f"model/{name} leads outside the folder, to {outside}." in refused(folder, tmp_path / "to")


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_instead_of_a_file_is_refused_immediately(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"model/{name} is not a regular file" in refused(folder, tmp_path / "to")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../outside.safetensors", "leads outside the folder"),
        ("/etc/passwd", "leads outside the folder, to /etc/passwd."),
        ("sub/../../outside.safetensors", "leads outside the folder"),
        ("x\0y", "cannot be opened"),
        ("\x1b[2J\n", r"\x1b[2J\n' is missing. Give a folder"),
        ("", "is not a regular file"),
        (".", "is not a regular file"),
    ],
)
def test_a_weight_map_outside_the_folder_is_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], name: str, message: str
) -> None:
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    assert message in refused(folder, tmp_path / "to")


def test_a_snapshot_in_hugging_faces_cache_is_imported_through_its_links(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    import_(snapshot, tmp_path / "to")
    (snapshot / "chat_template.jinja").symlink_to("../../../../secret")
    assert "leads outside the folder" in refused(snapshot, tmp_path / "other")


@pytest.mark.parametrize("depth", [40, 500, 2_000_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_deeply_nested_json_is_refused_in_one_line(folder: Path, tmp_path: Path, name: str, depth: int) -> None:
    (folder / name).write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    assert refused(folder, tmp_path / "to").endswith(f"{name} is nested deeper than 32 levels. Copy it again.")


def header(of: dict[str, Any], *, claimed: int | None = None) -> bytes:
    text = json.dumps(of).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header({}, claimed=2**63),
        header({}, claimed=99_000_000),
        header({NAME: {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**62]}}),
        header({NAME: {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}) + bytes(16),
        header({NAME: {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}) + bytes(16),
        header({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}) + bytes(16),
        header({NAME: {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}) + bytes(16),
        struct.pack("<Q", 2_000_000) + b"[" * 2_000_000,
    ],
    ids=["empty", "length", "short", "past the end", "overflow", "backwards", "overlap", "negative", "deep"],
)  # fmt: skip
def test_a_false_safetensors_header_is_refused_in_one_line(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a safetensors file: " in refused(folder, tmp_path / "to")


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def of(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            config = json.loads((folder / name).read_text())
            change(config)
            (folder / name).write_text(json.dumps(config))

    return of


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "tokenizer_config.json").write_text("[" * 2_000_000),
        lambda folder: (folder / "tokenizer.json").write_text('{"model": ' + "[" * 2_000_000),
        changed(lambda config: config.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        changed(lambda config: config.update(auto_map={"AutoTokenizer": [None, "code.Mine"]}, tokenizer_class="Mine")),
    ],
    ids=["deep config", "deep tokenizer", "panic", "code"],
)
def test_a_tokenizer_that_crashes_or_contains_code_is_refused_in_one_line(
    folder: Path, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    harm(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    assert "model: its tokenizer cannot be read: " in refused(folder, tmp_path / "to")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("size", [2_000_000, 2**80])
def test_a_model_far_larger_than_its_weights_is_refused_before_it_is_built(
    folder: Path, tmp_path: Path, name: str, size: int
) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"head_dim": 8, name: size}
    (folder / "config.json").write_text(json.dumps(config))
    assert re.search(
        r"describes [\d,]{9,} parameters, its files hold 26,\d{3}\. Correct", refused(folder, tmp_path / "to")
    )


def test_the_command_does_not_import_a_password_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    assert main(["import", "--from", str(folder), "--to", str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err == (
        f"{folder}/chat_template.jinja leads outside the folder, to /etc/passwd. "
        "Put the file itself in the folder, if you trust it.\n"
    )
    assert not (tmp_path / "to").exists()
