"""An invalid recipe is refused before anything starts, in one line with the place, the value and the fix."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution import places
from cupola_flows.orchestration.deployments import list_recipes
from cupola_flows.recipe.loading import Recipe, load_recipe, parse_recipe, shipped
from cupola_flows.recipe.validation import validate
from cupola_flows.runs.fingerprint import fingerprint
from cupola_flows.stages.pretraining.prepare import evaluation_prompts
from cupola_flows.stages.table import kinds
from cupola_platform.clusters import LocalCluster
from cupola_platform.errors import ConfigError, CupolaError, NotFoundError, SourceError
from cupola_platform.settings import Settings
from cupola_trainer.config.model.presets import preset

TINY = shipped()["tiny"].read_text()


def test_the_shipped_recipes_are_valid_and_listed() -> None:
    assert {"long-context", "post-training", "smoke", "staged", "tiny"} <= {recipe.name for recipe in list_recipes()}
    assert load_recipe("tiny").order() == (
        *("prepare", "pretrain", "upcycle", "pretrain_moe", "conversations", "sft", "preferences", "dpo", "evaluate"),
        "promote",
    )


def test_inputs_default_to_the_nearest_earlier_stages_that_fit() -> None:
    smoke = load_recipe("smoke")
    assert smoke.inputs("sft") == {
        "parent": ("pretrain_moe",),
        "conversations": ("conversations",),
        "base": (),
        "pretraining": (),
    }
    assert smoke.inputs("evaluate")["checkpoints"] == ("pretrain", "pretrain_moe", "sft", "dpo")
    assert smoke.inputs("promote") == {
        "checkpoints": ("pretrain", "sft", "dpo"),
        "baseline": ("pretrain_moe",),
        "evaluation": ("evaluate",),
    }


def test_the_schema_describes_every_field() -> None:
    definitions = Recipe.model_json_schema()["$defs"]
    assert definitions["PretrainStage"]["properties"]["steps"]["description"].startswith("Optimizer steps")
    assert definitions["BatchConfig"]["properties"]["micro_batch_size"]["default"] == 4


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("layout: {tp: 2}", "layuot: {tp: 2}", "stages.pretrain.layuot: there is no such key. Did you mean 'layout'?"),
        ("layout: {tp: 2}", "layout: {tpp: 2}", "stages.pretrain.layout.tpp: there is no such key. Did you mean 'tp'?"),
        ("name: tiny", "nmae: tiny", "nmae: there is no such key. Did you mean 'name'? (and 1 more error)"),
        ("train_bytes:", "train_byte:", "tokenizer.train_byte: there is no such key. Did you mean 'train_bytes'?"),
        ("[standard_library]", "[standard_libary]", "parts.0: 'standard_libary' is unknown. Did you mean"),
        ("type: python_environment", "type: python_env", "sources.descriptions.type: 'python_env' is unknown."),
        ("  upcycle:\n", "  upcyle:\n", "'upcyle' is not a kind of stage. Did you mean 'upcycle'?"),
        ("kind: pretrain", "kind: pretrian", "stages.pretrain_moe.kind: 'pretrian' is unknown. Did you mean 'pretrain'?"),
        ("parent: upcycle", "parent: upcicle", "stages.pretrain_moe.parent: there is no stage 'upcicle'. Did you mean"),
        ("parent: pretrain\n", "parent: dpo\n", "the stages form a cycle: upcycle -> dpo -> preferences -> sft"),
        ("parent: pretrain_moe", "parent: prepare", "stages.sft.parent: stage 'prepare' gives tokens, but checkpoint is"),
        (
            "warmup_steps: 20",
            "warmup_steps: 20, schedule: wsd, decay_steps: 9999",
            "decay_steps=9999 are more than the",
        ),
        ("warmup_steps: 20", "warmup_steps: many", "stages.pretrain.optimizer.warmup_steps: 'many': input should be a"),
        ("seed: 7", "seed: !!python/object/apply:os.system [ls]", "line 3: YAML tags"),
        ("seed: 7", "seed: &a 7", "line 3: YAML anchors and aliases are refused"),
        ("seed: 7", "seed: 7\nseed: 8", "line 4: not valid YAML: 'seed' is given twice"),
        ("seed: 7", "seed: [", "not valid YAML"),
        ('"0 3 * * *"', "at noon", "schedule: 'at noon' is not a cron expression."),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_the_fix(right: str, wrong: str, line: str) -> None:
    assert right in TINY
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY.replace(right, wrong, 1))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "[" * 5000, "\x00", "x" * 1_000_001, "name: tiny"])
def test_text_that_is_not_a_recipe_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text)
    assert "\n" not in str(caught.value)


def test_a_file_over_one_megabyte_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("# " + "x" * 1_000_000)
    with pytest.raises(ConfigError, match=r"1,000,002 bytes; the limit for a recipe is 1,000,000"):
        load_recipe(tmp_path / "big.yaml")


def test_a_misspelt_recipe_name_suggests_the_closest() -> None:
    with pytest.raises(NotFoundError, match=r"Did you mean 'tiny'"):
        load_recipe("tinny")


def test_overrides_are_yaml_and_reach_into_lists_and_missing_mappings() -> None:
    overrides = [
        "stages.pretrain.steps=11",
        "stages.conversations.tasks.0.count=12",
        "stages.sft.checkpoint.keep=3",
        "schedule=null",
    ]
    recipe = load_recipe("tiny", overrides)
    assert recipe.stages["pretrain"].steps == 11  # type: ignore[attr-defined]
    assert recipe.stages["conversations"].tasks[0].count == 12  # type: ignore[attr-defined]
    assert recipe.stages["sft"].checkpoint.keep == 3  # type: ignore[attr-defined]
    assert recipe.schedule is None


def test_a_preset_gives_the_published_values_with_the_changes() -> None:
    given = "stages.pretrain.model={preset: qwen2-57b-a14b, num_layers: 4, moe: {top_k: 2}}"
    recipe = load_recipe("tiny", [given, "stages.pretrain.model.rope_theta=10000000"])
    model = recipe.stages["pretrain"].model  # type: ignore[attr-defined]
    published = preset("qwen2-57b-a14b")
    assert published.moe
    assert model == replace(published, num_layers=4, vocab_size=0, rope_theta=1e7, moe=replace(published.moe, top_k=2))
    shown = Recipe.model_json_schema()["$defs"]["ModelConfig"]
    assert "qwen2-0.5b" in shown["properties"]["preset"]["enum"]
    assert {"required": ["preset"]} in shown["anyOf"]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("{preset: qwen2-0.4b}", "stages.pretrain.model: preset 'qwen2-0.4b' is unknown. Did you mean 'qwen2-0.5b'?"),
        ("{preset: 3}", "stages.pretrain.model: preset 3 is unknown. Known: gemma-2-27b,"),
        ("{presett: qwen2-0.5b}", "stages.pretrain.model.presett: there is no such key. Did you mean 'preset'?"),
        ("{preset: qwen2-0.5b, num_layer: 3}", "model.num_layer: there is no such key. Did you mean 'num_layers'?"),
        ("{preset: qwen2-0.5b, hidden_size: 900}", "stages.pretrain.model: hidden_size=900 is not a multiple of"),
    ],
)
def test_an_unknown_preset_suggests_the_closest(model: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", [f"stages.pretrain.model={model}"])
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages.pretrian.steps=3", "there is no stage 'pretrian'. Did you mean 'pretrain'?"),
        ("stages.pretrain.stpes=3", "stages.pretrain.stpes: there is no such key. Did you mean 'steps'?"),
        ("stage.pretrain.steps=3", "there is no 'stage' in a recipe. Did you mean 'stages'?"),
        ("stages.conversations.tasks.9.count=1", "'9' is not an index of a list of"),
        ("stages.pretrain.steps", "give KEY=VALUE"),
        ("seed=!!int 3", "seed: '!!int 3': input should be a valid integer"),
        ("seed=-1", "seed: -1: input should be greater than or equal to 0"),
        ("stages.sft.seed=4294967296", "stages.sft.seed: 4294967296: input should be less than 2147483648"),
        ("stages.prepare.corpus.sources={mine: {path: x}}", "sources.mine: type is missing: got {'path': 'x'}."),
        ("stages.sft.epochs=2", "stages.sft: give either `steps` ("),
    ],
)
def test_an_unknown_override_is_refused(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", [override])
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("override", "error", "line"),
    [
        ("stages.pretrain.model.num_query_groups=1", ConfigError, "num_query_groups=1 is not a multiple of tp=2"),
        ("stages.pretrain.layout.tp=4", ConfigError, "4 processes, but this machine runs at most 2"),
        ("stages.pretrain.batch.global_batch_size=9", ConfigError, "Try global_batch_size=12"),
        ("stages.prepare.corpus.sources.library={type: files, path: /nowhere/x.txt}", SourceError, "does not exist"),
        ("stages.evaluate.layout.tp=2", ConfigError, "stages.evaluate: tp=2 without sp"),
        ("stages.upcycle.moe.top_k=9", ConfigError, "stages.upcycle.moe: top_k=9 is more than num_experts=8"),
        ("stages.upcycle.match_dense=true", ConfigError, "stages.upcycle: match_dense: router='random' is not 'copies'"),
        ("stages.sft.precision=fp8", ConfigError, "stages.sft: precision=fp8 needs a GPU, and this machine has none"),
        ("stages.dpo.layout.offload_optimizer=true", ConfigError, "stages.dpo: layout.offload_optimizer=true needs a GPU"),
        ("stages.pretrain.batch={sequence_length: 256, micro_batch_size: 9999999, global_batch_size: 9999999}",
         ConfigError, "stages.pretrain: micro_batch_size x sequence_length = 2,559,999,744 tokens need about"),
    ],
)  # fmt: skip
def test_a_recipe_is_validated_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, override: str, error: type[CupolaError], line: str
) -> None:
    monkeypatch.setattr(places, "gpus", lambda: 0)
    with pytest.raises(error) as caught:
        validate(load_recipe("tiny", [override]), Settings(max_processes=2))
    assert line in str(caught.value)


def test_the_clusters_devices_count_where_a_stage_runs_on_one() -> None:
    fp8 = ["stages.pretrain.precision=fp8", "stages.pretrain.fp8={first_layers: 0, last_layers: 0}"]
    recipe = load_recipe("tiny", [*fp8, "run_on=there"])

    def check(**there: Any) -> None:
        cluster = LocalCluster(launcher="local", **there)
        validate(recipe, Settings(clusters={"there": cluster}), ["pretrain"])

    with pytest.raises(ConfigError, match="precision=fp8 needs a GPU, and cluster there has none"):
        check(ranks_per_node=2)
    with pytest.raises(ConfigError, match=r"tokens need about .* Not even the model fits"):
        check(gpus_per_node=2, gpu_memory=0.001)
    check(gpus_per_node=2)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    override = f"stages.prepare.corpus.sources.library={{type: files, path: {tmp_path / 'empty.txt'}}}"
    with pytest.raises(SourceError, match="empty"):
        validate(load_recipe("tiny", [override]), Settings(max_processes=2))


def test_a_fingerprint_changes_only_with_what_decides_the_result() -> None:
    parents = {"tokens": ["a" * 64]}
    one = fingerprint(load_recipe("tiny"), "pretrain", parents)
    assert one == fingerprint(load_recipe("tiny", ["name=other", "stages.sft.steps=3"]), "pretrain", parents)
    assert one == fingerprint(load_recipe("tiny", ["stages.prepare.corpus.executor.workers=1"]), "pretrain", parents)
    elsewhere = [
        "stages.pretrain.layout={dp: 4, recompute: full}",
        "stages.pretrain.checkpoint={every: 7, upload: true}",
    ]
    assert one == fingerprint(load_recipe("tiny", [*elsewhere, "stages.pretrain.log_every=5"]), "pretrain", parents)
    assert one != fingerprint(load_recipe("tiny", ["seed=8"]), "pretrain", parents)
    assert one != fingerprint(load_recipe("tiny", ["stages.pretrain.steps=9"]), "pretrain", parents)
    assert one != fingerprint(load_recipe("tiny"), "pretrain", {"tokens": ["b" * 64]})


def test_the_template_date_affects_only_stages_that_render_chat_templates() -> None:
    today, tomorrow = (load_recipe("tiny", [f"template_date={day}"]) for day in ("2026-11-30", "2026-12-01"))
    assert today.template_date == date(2026, 11, 30)
    changed = {
        name
        for name, stage in today.stages.items()
        if fingerprint(today, name, {field: ["a" * 64] for field in stage.inputs()})
        != fingerprint(tomorrow, name, {field: ["a" * 64] for field in stage.inputs()})
    }
    assert changed == {"sft", "preferences", "dpo", "evaluate", "promote"}
    silent = {"prepare", "pretrain", "upcycle", "long_context", "conversations", "pairs", "merge", "prune"}
    assert {kind for kind, stage in kinds().items() if not stage.renders} == silent
    with pytest.raises(ConfigError, match="template_date"):
        load_recipe("tiny", ["template_date=yesterday"])


def test_a_corpus_is_decontaminated_against_the_recipes_held_out_prompts() -> None:
    tasks = "stages.prepare.corpus.decontamination={tasks: true}"
    recipe = load_recipe("tiny", [tasks, "stages.conversations.heldout_per_task=3"])
    prompts = evaluation_prompts(recipe.stages, recipe.seeds())
    assert {name: len(of) for name, of in prompts.items()} == {
        "conversations:aiw-0": 3, "conversations:syllogism-1": 3, "conversations:chain_sum-2": 3,
    }  # fmt: skip
    assert fingerprint(recipe, "prepare", {}) != fingerprint(load_recipe("tiny", [tasks]), "prepare", {})
    more = [tasks, "stages.conversations.heldout_per_task=3", "stages.conversations.corpus_conversations=9"]
    assert fingerprint(recipe, "prepare", {}) == fingerprint(load_recipe("tiny", more), "prepare", {})
    with pytest.raises(ConfigError, match="no conversations stage of the recipe has tasks"):
        validate(load_recipe("tiny", [tasks, "stages.conversations.tasks=[]"]), Settings(max_processes=2))


def test_perplexity_and_its_judge_need_each_other() -> None:
    judge = "stages.prepare.judge=artifact:champion"
    with pytest.raises(ConfigError, match=r"`judge` .* and `corpus\.perplexity` .* need each other"):
        load_recipe("tiny", [judge])
    recipe = load_recipe("tiny", [judge, "stages.prepare.corpus.perplexity={max_bits_per_byte: 3}"])
    assert recipe.inputs("prepare") == {"judge": ("artifact:champion",)}
    assert load_recipe("tiny").inputs("prepare") == {"judge": ()}


@pytest.mark.parametrize("settings", ["stages.sft.pretraining=prepare", "stages.sft.pretraining_share=0.25"])
def test_pretraining_and_its_share_must_be_given_together(settings: str) -> None:
    bare = ["stages.sft.pretraining=null", "stages.sft.pretraining_share=0"]
    with pytest.raises(ConfigError, match=r"Give both, or leave both out"):
        load_recipe("tiny", [*bare, settings])
    assert load_recipe("tiny", bare).inputs("sft")["pretraining"] == ()
