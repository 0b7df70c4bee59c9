"""Presets match the published sizes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.presets import PRESETS, preset
from cupola_trainer.config.model.sizes import active_parameters, parameter_count
from cupola_trainer.conversion.config_json import to_config

PUBLISHED = {
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
}
"""Parameter counts of the published weight files."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_match_the_published_weights(name: str) -> None:
    assert parameter_count(PRESETS[name]) == PUBLISHED[name]


def test_other_presets_match_the_parameter_count_of_transformers() -> None:
    others = set(PRESETS) - set(PUBLISHED)
    assert others == {"qwen2-tiny", "qwen2-moe-tiny", "qwen2-57b-a14b"}
    for name in others:
        config = to_config(PRESETS[name], dtype="float32", bos=None, eos=None, pad=None)
        kind = config.pop("model_type")
        with torch.device("meta"):
            theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
        assert parameter_count(PRESETS[name]) == sum(parameter.numel() for parameter in theirs.parameters())


def test_57b_a14b_has_57_billion_parameters_and_14_billion_active_ones() -> None:
    assert parameter_count(PRESETS["qwen2-57b-a14b"]) == 57_408_658_944
    assert active_parameters(PRESETS["qwen2-57b-a14b"]) == 14_249_270_784
    assert round(active_parameters(PRESETS["qwen1.5-moe-a2.7b"]) / 1e8) == 27


def test_non_embedding_parameters_match_gemma_2s_table() -> None:
    """Gemma 2 report, table 2."""
    table = {"gemma-2-2b": 2_024_517_888, "gemma-2-9b": 8_324_201_984, "gemma-2-27b": 26_047_480_320}
    for name, expected in table.items():
        model = PRESETS[name]
        assert parameter_count(model) - model.vocab_size * model.hidden_size == expected


def test_a_preset_can_be_changed_and_an_unknown_one_names_the_others() -> None:
    assert preset("qwen2-0.5b", max_position_embeddings=4096).max_position_embeddings == 4096
    with pytest.raises(ConfigError, match=r"preset 'qwen3' is not known\. Known: qwen2-tiny, "):
        preset("qwen3")
