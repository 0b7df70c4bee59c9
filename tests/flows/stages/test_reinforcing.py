"""Recipes with stages that train on the model's own responses."""

import pytest

from cupola_flows.recipe.loading import load_recipe, parse_recipe, shipped
from cupola_flows.recipe.validation import validate
from cupola_platform.errors import ConfigError
from cupola_platform.settings import Settings
from cupola_trainer.config import PythonReward, TaskReward

GRPO = shipped()["grpo"].read_text()


def test_reward_model_and_pretraining_are_never_guessed() -> None:
    recipe = load_recipe("grpo")
    assert recipe.inputs("grpo") == {"parent": ("sft",), "conversations": ("conversations",), "reward_model": ()}
    ppo = parse_recipe(
        GRPO.replace("  grpo:\n", "  grpo:\n    kind: ppo\n    pretraining: prepare\n").replace("kl_coef: 0.01", "")
    )
    assert ppo.inputs("grpo")["pretraining"] == ("prepare",)
    assert ppo.inputs("grpo")["value_model"] == ()


def test_rewards_are_discriminated_by_their_scorer() -> None:
    text = "kl_coef: 0.01\n    rewards: [{scorer: task, weight: 2}, {scorer: python, function: 'my.rewards:short'}]"
    stage = parse_recipe(GRPO.replace("kl_coef: 0.01", text)).stages["grpo"]
    assert stage.rewards == (TaskReward(weight=2.0), PythonReward(function="my.rewards:short"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("rewards: []", "no rewards given. Give `rewards` or a `reward_model`"),
        ("rewards: [{scorer: tsk}]", "rewards.0.scorer: 'tsk' is unknown. Did you mean 'task'?"),
        ("reward_model: prepare", "stage 'prepare' gives tokens, but reward_model is needed"),
        ("clip_low: 1.5", "stages.grpo.clip_low: '1.5'"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line(wrong: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(GRPO.replace("kl_coef: 0.01", wrong))
    assert says in str(caught.value).replace("1.5:", "'1.5':")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("samples_per_prompt: 8", "samples_per_prompt: 1", r"stages\.grpo: rollout\.samples_per_prompt=1"),
        (
            "prompts: 64",
            "prompts: 5",
            r"stages\.grpo: a rollout has 40 responses, not a multiple of global_batch_size=128",
        ),
        ("max_new_tokens: 8, held", "max_new_tokens: 128, held", r"max_new_tokens=128 leaves no room"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_starts(right: str, wrong: str, says: str) -> None:
    assert right in GRPO
    with pytest.raises(ConfigError, match=says):
        validate(parse_recipe(GRPO.replace(right, wrong, 1)), Settings(max_processes=2), only=["grpo"])
