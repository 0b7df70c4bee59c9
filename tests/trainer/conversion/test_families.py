"""A model family is one file that is discovered automatically, ours or a plugin's that this test writes."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.checkpoint import read_model
from cupola_trainer.commands import main
from cupola_trainer.config import LayoutConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion import families
from cupola_trainer.conversion.checkpoint_reader import StoredTensors

TOY_MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=16,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    rope_theta=10_000.0,
    qkv_bias=False,
    qk_norm=True,
    activation="gelu_tanh",
)
TOY = '''
"""A Llama with QK norm, GeGLU and its own tensor names."""

from transformers import AutoConfig, LlamaConfig

from cupola_trainer.conversion.family import Family
from cupola_trainer.conversion.tensor_rules import EMBEDDING, QKV, decoder_rules, renamed


class ToyConfig(LlamaConfig):
    model_type = "toy"


AutoConfig.register("toy", ToyConfig)
NAMES = {
    EMBEDDING: ("toy.words.weight",),
    QKV: ("toy.{layer}.query.weight", "toy.{layer}.key.weight", "toy.{layer}.value.weight"),
}

FAMILY = Family(
    model_type="toy",
    title="Toy",
    architecture="ToyForCausalLM",
    traits={"qk_norm": True, "activation": "gelu_tanh"},
    only={"hidden_act": "gelu_pytorch_tanh"},
    config_entries=lambda model: {"hidden_act": "gelu_pytorch_tanh", "head_dim": model.head_size},
    rules=lambda model: renamed(decoder_rules(model), NAMES),
)
'''

OURS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
)

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution `toy` whose entry point names a module with the given source."""

    def write(source: str) -> None:
        described = tmp_path / "installed" / "toy-1.0.dist-info"
        described.mkdir(parents=True)
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        (described / "entry_points.txt").write_text("[cupola.families]\ntoy = toy_family\n")
        (tmp_path / "installed" / "toy_family.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "installed")
        families.families.cache_clear()

    yield write
    families.families.cache_clear()
    sys.modules.pop("toy_family", None)
    CONFIG_MAPPING._extra_content.pop("toy", None)


@pytest.fixture
def toy_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with norms other than one."""
    runtime.start(LayoutConfig(), seed=0)
    chunks = models.build(TOY_MODEL, LayoutConfig(), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in chunks[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    checkpoint.save(
        tmp_path / "checkpoint", chunks, model=TOY_MODEL, layout=LayoutConfig(), step=1, consumed_samples=8, seed=1,
        objective="next_token", tokenizer=None,
    )  # fmt: skip
    runtime.stop()
    return tmp_path / "checkpoint"


def test_a_plugins_family_is_exported_and_imported_bit_for_bit(
    install: Install, toy_checkpoint: Path, tmp_path: Path
) -> None:
    install(TOY)
    assert main(["export", "--checkpoint", str(toy_checkpoint), "--to", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["head_dim"]) == ("toy", ["ToyForCausalLM"], 16)
    assert "A dense decoder (Toy) with 23,776 parameters." in (tmp_path / "out" / "README.md").read_text()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items() if "toy" in name or "layers.1.self" in name} == {
        "toy.words.weight": (64, 32), "toy.0.query.weight": (64, 32), "toy.0.key.weight": (32, 32),
        "toy.0.value.weight": (32, 32), "toy.1.query.weight": (64, 32), "toy.1.key.weight": (32, 32),
        "toy.1.value.weight": (32, 32), "model.layers.1.self_attn.q_norm.weight": (16,),
        "model.layers.1.self_attn.k_norm.weight": (16,), "model.layers.1.self_attn.o_proj.weight": (32, 64),
    }  # fmt: skip
    assert main(["import", "--from", str(tmp_path / "out"), "--to", str(tmp_path / "back")]) == 0
    assert read_model(tmp_path / "back") == TOY_MODEL
    ours, returned = StoredTensors(toy_checkpoint), StoredTensors(tmp_path / "back")
    assert set(ours) == set(returned)
    assert all(torch.equal(ours[key], returned[key]) for key in ours)
    assert main(["export", "--checkpoint", str(tmp_path / "back"), "--to", str(tmp_path / "again")]) == 0
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "again")]
    assert files[0] == files[1]


def test_without_the_plugin_the_model_is_refused_naming_the_trait(
    toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint", str(toy_checkpoint), "--to", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "transformers has no such model: its qwen3 does not support activation='gelu_tanh'. It cannot be exported.\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("FAMILIES = []", "toy_family, an entry point of cupola.families, defines no FAMILY. Uninstall or correct it."),
        (TOY.replace('model_type="toy"', 'model_type="llama"'), "toy_family defines the family 'llama' a second time."),
    ],
    ids=["none", "again"],
)
def test_a_plugin_without_a_new_family_is_named(install: Install, source: str, message: str) -> None:
    install(source)
    with pytest.raises(ConfigError, match=message):
        families.families()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("qwen4", "model_type='qwen4' is not supported. Did you mean 'qwen3'?"),
        ("gpt2", f"model_type='gpt2' is not supported. Known: {', '.join(OURS)}."),
        (["llama"], "model_type=['llama'] is not supported. Did you mean 'llama'?"),
    ],
)
def test_an_unknown_family_is_refused_with_the_nearest(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        families.named(given)
    assert str(refused.value) == message


def test_every_family_is_among_the_checkpoints_that_the_tests_convert(saved: Path) -> None:
    models = [read_model(folder.parent) for folder in saved.glob("*/model.json")]
    assert {families.of(model).model_type for model in models} == set(families.families())


def test_the_families_page_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[3] / "docs" / "families.md").read_text()
    table = page.split("## Values by family")[1].split("\n\n")[1].splitlines()
    rows = {line.split("|")[1].split("(")[0].strip() for line in table[2:]}
    assert rows == {family.title for family in families.families().values()}
