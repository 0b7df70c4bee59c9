"""Distances between checkpoints, against the same arithmetic on exported folders."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer.conversion.differences import compare_weights
from cupola_trainer.conversion.exporting import export
from cupola_trainer.conversion.importing import import_

KEY, BIAS = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.bias"


def test_a_change_is_located_and_measured(saved: Path, tmp_path: Path) -> None:
    folder = export(saved / "moe", tmp_path / "hf")
    before = load_file(folder / "model.safetensors")
    noise = torch.randn(before[KEY].shape, generator=torch.Generator().manual_seed(1)) * 0.01
    after = {**before, KEY: before[KEY] + noise, BIAS: before[BIAS] * 2}
    save_file(after, folder / "model.safetensors", metadata={"format": "pt"})
    import_(folder, tmp_path / "changed")

    found = compare_weights(saved / "moe", tmp_path / "changed")
    rows = {row["name"]: row for row in found["tensors"]}
    assert set(rows) == set(before)
    assert found["only_a"] == found["only_b"] == []
    assert {name for name, row in rows.items() if row["distance"]} == {KEY, BIAS}
    for name, row in rows.items():
        x, y = before[name].double(), after[name].double()
        assert row["shape"] == list(x.shape)
        assert row["norm"] == pytest.approx(x.norm().item())
        assert row["distance"] == pytest.approx((y - x).norm().item())
        assert row["changed"] == pytest.approx((x != y).double().mean().item())
        assert row["cosine"] == pytest.approx(torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item())


def test_tensors_of_only_one_architecture_are_named(saved: Path) -> None:
    found = compare_weights(saved / "dense", saved / "moe")
    assert "model.layers.0.mlp.up_proj.weight" in found["only_a"]
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in found["only_b"]
    assert "model.embed_tokens.weight" in [row["name"] for row in found["tensors"]]


def test_a_checkpoint_with_a_flipped_byte_is_not_compared(saved: Path, tmp_path: Path) -> None:
    folder = export(saved / "dense", tmp_path / "hf")
    broken = Path(import_(folder, tmp_path / "broken").path)
    file = broken / "state" / "rank_00000.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"rank_00000\.bin"):
        compare_weights(saved / "dense", broken)
