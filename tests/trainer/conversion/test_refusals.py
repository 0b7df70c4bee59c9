"""What cannot be converted is refused by name, in one line, and nothing is left behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cupola_platform.errors import ConfigError, CorruptArtifactError, NotFoundError
from cupola_trainer.commands import main
from cupola_trainer.config import ModelConfig
from cupola_trainer.conversion.config_json import to_config
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"dense": export(saved / "dense", tmp_path_factory.mktemp("exported") / "dense")}


def changed(folder: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(folder, to)
    original = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(original | config))
    return to


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported. Known: gemma, gemma2, gemma3_text, llama, "),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 8,
                                 "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}},
            "RoPE of type 'longrope' is not supported. Supported: default, linear, dynamic, yarn, llama3",
        ),
        (
            {"max_position_embeddings": 256,
             "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                 "original_max_position_embeddings": 32}},
            "max_position_embeddings=256 is beyond what yarn allows: .* = 128",
        ),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported. Only 'silu' is"),
        ({"hidden_size": 66}, "config.json: hidden_size=66 is not a multiple"),
        ({"model_type": ["qwen2"]}, r"model_type=\['qwen2'\] is not supported"),
        ({"architectures": ["FooForCausalLM"]},
        r"architectures=\['FooForCausalLM'\] is not supported. Supported for qwen2: Qwen2ForCausalLM"), ({"architectures": 3},
        "architectures=3 is not supported"), ({"intermediate_size": 0},
        "config.json: intermediate_size=0: input should be greater than or equal to 1"), ({"num_key_value_heads": 3},
        "config.json: num_attention_heads=4 is not a multiple of num_key_value_heads=3"), ({"dual_chunk_attention_config": 3}, "dual_chunk_attention_config=3 is not a mapping"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": "x"}},
            "rope_parameters.factor='x' is not a number",
        ),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
    ],
)  # fmt: skip
def test_an_unsupported_configuration_is_refused(
    exported: dict[str, Path], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_(changed(exported["dense"], tmp_path / "other", **config), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_tensors_that_do_not_fit_are_named(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(exported["dense"], tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.layers.1.input_layernorm.weight")
    for wrong, message in [
        (tensors, "lacks the tensor model.layers.1.input_layernorm.weight"),
        (tensors | {"model.layers.1.input_layernorm.weight": norm[:9].clone()}, r"has shape \(9,\); .* \(64,\)"),
        (tensors | {"model.layers.1.input_layernorm.weight": norm, "model.extra": norm.clone()}, "model.extra"),
    ]:
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(ConfigError, match=message):
            import_(folder, tmp_path / "to")


def test_pickled_weights_are_never_opened(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(exported["dense"], tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is pickled: .* Save the model as safetensors first"):
        import_(folder, tmp_path / "to")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"model.norm.weight": 3}}'])
def test_an_index_without_files_is_refused(exported: dict[str, Path], tmp_path: Path, index: str) -> None:
    folder = changed(exported["dense"], tmp_path / "folder")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"index\.json has no weight_map from tensor names to file names"):
        import_(folder, tmp_path / "to")


def test_an_unreadable_tokenizer_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(exported["dense"], tmp_path / "folder")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"its tokenizer cannot be read: .* Repair or remove tokenizer\.json"):
        import_(folder, tmp_path / "to")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no config\.json"):
        import_(tmp_path, tmp_path / "to")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.norm.weight", lambda x: x.fill_(float("nan")), "model.norm.weight holds values that are not finite"),
        ("model.norm.weight", lambda x: x.double(), "model.norm.weight has dtype F64. Only F32, BF16, F16"),
        (
            "lm_head.weight",
            lambda x: x + 1,
            "lm_head.weight differs from model.embed_tokens.weight, but config.json ties",
        ),
    ],
    ids=["nan", "type", "tied"],
)
def test_invalid_weights_are_refused_by_name(
    exported: dict[str, Path], tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    folder = changed(exported["dense"], tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors.get(name, tensors["model.embed_tokens.weight"]).clone())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        import_(folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_embeddings": True}, "its qwen2 does not support scale_embeddings=True"),
        ({"attention_windows": (8, 16)}, "one window size per model; this model has several"),
    ],
)
def test_a_model_that_transformers_does_not_have_is_not_exported(change: dict[str, Any], message: str) -> None:
    model = ModelConfig(vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=2, num_query_groups=2,
                        ffn_hidden_size=48, max_position_embeddings=64, **change)  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        to_config(model, dtype="float32", bos=None, eos=None, pad=None)


def test_a_changed_byte_is_refused_by_name_before_anything_is_unpickled(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(saved / "dense", folder)
    path = folder / "state" / "rank_00000.json"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"state/rank_00000\.json is corrupt"):
        export(folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_command_line_error_is_one_line_and_status_2(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-m", "cupola_trainer", "export", "--checkpoint", saved / "dense", "--to", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path} exists and is not an empty folder. Give a new one.\n"
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    saved: Path, exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    below = tmp_path / "file" / "to"
    assert main(["export", "--checkpoint", str(saved / "dense"), "--to", str(below)]) == 2
    line = "Not a directory. Free space there, change its permissions, or name another folder.\n"
    assert capsys.readouterr().err == f"{tmp_path}/file/.to.partial: {line}"
    assert main(["import", "--from", str(exported["dense"]), "--to", str(below)]) == 2
    assert capsys.readouterr().err == f"{below}: to could not be saved: {line}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
