"""transformers folders <-> checkpoints: against transformers, bit for bit, in one process, from any layout."""

import json
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from cupola_platform import artifacts
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.checkpoint.description import read_training
from cupola_trainer.commands import main
from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig
from cupola_trainer.config.model.sizes import active_parameters, parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.config_json import from_config
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_
from cupola_trainer.conversion.tensor_rules import GroupedQKV
from cupola_trainer.generation.continuation import continue_text
from cupola_trainer.generation.loading import load
from cupola_trainer.generation.sampling import Sampling

HERE = Path(__file__).parent
NAMES = list(runpy.run_path(str(HERE.parent / "material" / "saved_models.py"))["MODELS"])


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {name: export(saved / name, folder / name) for name in NAMES}


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    [model] = load(folder, LayoutConfig()).chunks
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, torch.arange(tokens.size(1)).expand_as(tokens), None)
    return logits


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_model_has_our_logits_in_transformers(saved: Path, exported: dict[str, Path], name: str) -> None:
    tokens = torch.randint(0, 512, (2, 100), generator=torch.Generator().manual_seed(5))
    ours = logits_of(saved / name, tokens)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(exported[name]).eval()(tokens).logits
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_export_and_import_are_bit_exact(saved: Path, exported: dict[str, Path], name: str, tmp_path: Path) -> None:
    back = import_(exported[name], tmp_path / "back").path
    original, returned = StoredTensors(saved / name), StoredTensors(back)
    assert set(original) == set(returned)
    assert all(torch.equal(original[key], returned[key]) for key in original)
    assert checkpoint.read_model(back) == checkpoint.read_model(saved / name)
    again = export(back, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (exported[name] / "model.safetensors").read_bytes()


SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("config", "model"),
    [
        (Qwen2Config(**SMALL, tie_word_embeddings=True), Qwen2ForCausalLM),
        (
            Qwen2MoeConfig(**SMALL, moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=3),
            Qwen2MoeForCausalLM,
        ),
    ],
    ids=["qwen2", "qwen2_moe"],
)
def test_a_folder_that_transformers_saved_is_imported(saved: Path, tmp_path: Path, config: Any, model: Any) -> None:
    config.num_experts_per_tok = 2
    torch.manual_seed(0)
    theirs = model(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(saved / "tokenizer").save_pretrained(tmp_path / "theirs")
    import_(tmp_path / "theirs", tmp_path / "ours")
    runtime.start(LayoutConfig(), seed=0)
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(tmp_path / "ours", tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("dense", {"tp": 2, "sp": True}), ("dense", {"pp": 2}), ("moe", {"dp": 2, "ep": 2})],
    ids=["tp2", "pp2", "ep2"],
)
def test_a_checkpoint_of_any_layout_exports_the_same_file(
    saved: Path,
    exported: dict[str, Path],
    name: str,
    layout: dict[str, int],
    tmp_path: Path,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    torchrun(2, HERE / "resaved.py", saved / name, tmp_path / "sharded", json.dumps(layout))
    folder = export(tmp_path / "sharded", tmp_path / "exported")
    assert (folder / "model.safetensors").read_bytes() == (exported[name] / "model.safetensors").read_bytes()


def test_large_weights_are_split_into_files_with_an_index(
    saved: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = export(saved / "moe", tmp_path / "split", shard_bytes=200_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((folder / name).stat().st_size < 250_000 for name in files)
    whole = AutoModelForCausalLM.from_pretrained(exported["moe"]).state_dict()
    split = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(whole[name], split[name]) for name in whole)


def test_an_exported_folder_describes_the_model(saved: Path, exported: dict[str, Path]) -> None:
    folder = exported["moe"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(saved / "moe" / "tokenizer")
    chat = [{"role": "user", "content": "def f(x):"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(chat, tokenize=False)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == 512
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|im_end|>", "<|endoftext|>"]
    card = (folder / "README.md").read_text()
    assert artifacts.read(saved / "moe").digest in card
    assert f"{active_parameters(from_config(config)):,} active per token" in card


def test_parameters_of_a_mixture_are_counted_as_by_transformers(exported: dict[str, Path]) -> None:
    model = ModelConfig(
        vocab_size=512, hidden_size=64, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=160,
        max_position_embeddings=128,
        moe=MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=48, shared_expert_ffn_hidden_size=96),
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(exported["moe"])
    assert parameter_count(model) == sum(parameter.numel() for parameter in theirs.parameters())
    assert parameter_count(model) - active_parameters(model) == 2 * 2 * 3 * 64 * 48


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_grouped_qkv_splits_as_it_was_joined(groups: int, per_group: int, head_dim: int, bias: bool) -> None:
    rest = () if bias else (3,)
    rows = [groups * per_group * head_dim, groups * head_dim, groups * head_dim]
    parts = [torch.randn(count, *rest) for count in rows]
    layout = GroupedQKV(groups * per_group, groups)
    whole = layout.join(parts)
    assert whole.shape == (sum(rows), *rest)
    assert torch.equal(whole[: per_group * head_dim], parts[0][: per_group * head_dim])
    assert all(torch.equal(a, b) for a, b in zip(layout.split(whole), parts, strict=True))


def test_bf16_weights_in_many_files_without_tokenizer_survive_a_round_trip(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    half = AutoModelForCausalLM.from_pretrained(exported["gemma2"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half", max_shard_size="60KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 3
    import_(tmp_path / "half", tmp_path / "ours")
    assert not (tmp_path / "ours" / "tokenizer").exists()
    back = load_file(export(tmp_path / "ours", tmp_path / "back") / "model.safetensors")
    assert set(back) == set(half.state_dict()) - {"lm_head.weight"}
    for name, tensor in back.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, half.state_dict()[name]), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert again.dtype == torch.bfloat16


@pytest.mark.usefixtures("one_process")
def test_bf16_weights_are_trained_in_the_precision_of_the_run(exported: dict[str, Path], tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(exported["llama"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    import_(tmp_path / "half", tmp_path / "ours")
    runtime.start(LayoutConfig(), seed=0)
    [model] = models.build(checkpoint.read_model(tmp_path / "ours"), LayoutConfig())
    checkpoint.load_weights(tmp_path / "ours", [model])
    embedding = model.embedding.word_embeddings.weight
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, half.model.embed_tokens.weight.float())


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_control_tokens_and_sampling_settings_survive_a_round_trip(
    exported: dict[str, Path], tmp_path: Path, with_tokenizer: bool
) -> None:
    shutil.copytree(exported["llama"], tmp_path / "theirs")
    ids = {"bos_token_id": None, "eos_token_id": [7, 9, 11], "pad_token_id": None}
    given = ids | {"do_sample": True, "repetition_penalty": 1.05, "top_k": 20}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(given | {"transformers_version": "4.37.0"}))
    if not with_tokenizer:
        (tmp_path / "theirs" / "tokenizer.json").unlink()
    import_(tmp_path / "theirs", tmp_path / "ours")
    back = export(tmp_path / "ours", tmp_path / "back")
    assert json.loads((back / "generation_config.json").read_text()) == given
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (exported["llama"], back))
    assert {key: after[key] for key in ids} == {key: before[key] for key in ids}


def test_a_generation_config_overrides_config_jsons_end_token_as_in_transformers(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(exported["llama"], tmp_path / "theirs")
    described = json.loads((exported["llama"] / "config.json").read_text()) | {"eos_token_id": 9}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(described))
    (tmp_path / "theirs" / "generation_config.json").write_text("{}")
    import_(tmp_path / "theirs", tmp_path / "ours")
    assert read_training(tmp_path / "ours")["control_tokens"]["eos"] is None
    back = AutoModelForCausalLM.from_pretrained(export(tmp_path / "ours", tmp_path / "back"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert back.generation_config.eos_token_id is theirs.generation_config.eos_token_id is None
    assert back.config.eos_token_id == theirs.config.eos_token_id == 9


def test_an_imported_model_samples_every_row_and_stops_as_in_transformers(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(exported["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported["llama"])
    prompt = torch.tensor([tokenizer.encode("import os")])
    free = theirs.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, prompt.size(1) :].tolist()
    end = free[11]
    shutil.copytree(exported["llama"], tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    import_(tmp_path / "theirs", tmp_path / "ours")
    generated = continue_text(tmp_path / "ours", "import os", Sampling(max_new_tokens=24, temperature=0.0))
    assert generated == tokenizer.decode(free[: free.index(end) + 1], skip_special_tokens=True)


def test_a_conversation_is_prompted_through_the_chat_template_with_its_tools(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    asked = [{"role": "user", "content": "Hi"}]
    tokenizer = AutoTokenizer.from_pretrained(saved / "dense" / "tokenizer")
    text = tokenizer.apply_chat_template(asked, tools=tools, tokenize=False, add_generation_prompt=True)
    assert '{"name": "now"}' in text
    file = tmp_path / "chat.json"
    outputs = []
    for asking in ("--prompt", text), ("--chat", str(file)):
        file.write_text(json.dumps({"messages": [*asked, {"role": "assistant", "content": "Hello"}], "tools": tools}))
        assert main(["generate", *asking, "--max-new-tokens", "6", "--checkpoint", str(saved / "dense")]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    file.write_text('{"messages": []}')
    assert main(["generate", "--chat", str(file), "--checkpoint", str(saved / "dense")]) == 2
    assert "is not a conversation (malformed)" in capsys.readouterr().err


def test_the_command_line_exports_imports_and_generates(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint", str(saved / "dense"), "--to", str(tmp_path / "hf")]) == 0
    assert main(["import", "--from", str(tmp_path / "hf"), "--to", str(tmp_path / "back")]) == 0
    capsys.readouterr()
    command = ["generate", "--prompt", "import os", "--max-new-tokens", "12", "--checkpoint"]
    assert main([*command, str(saved / "dense")]) == 0
    first = capsys.readouterr().out
    assert main([*command, str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out == first != "\n"
