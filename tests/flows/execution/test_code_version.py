"""A fingerprint covers exactly the code that a stage runs: found by following imports, hashed without prose."""

from pathlib import Path

import pytest

from cupola_flows.execution import code_version
from cupola_flows.execution.code_version import counts, reached
from cupola_flows.recipe.loading import parse_recipe
from cupola_flows.stages.table import kinds
from cupola_trainer.config import BatchConfig, LoraConfig, SftData, TeachJob


def forget() -> None:
    """Clear the caches: tests rewrite modules under the same name."""
    for cached in (code_version.code_version, code_version._tree, code_version._declared):
        cached.cache_clear()


def of(kind: str) -> set[str]:
    return reached([kinds()[kind].__module__])


@pytest.mark.parametrize(
    ("kind", "reaches", "leaves"),
    [
        ("pretrain", {"cupola_trainer.training.loop", "cupola_trainer.objectives.next_token", "cupola_trainer.megatron.adam", "cupola_trainer.kernels.swiglu"},
         {"cupola_trainer.pruning.choice", "cupola_flows.terminal.display", "cupola_trainer.training.watchdog"}),
        ("sft", {"cupola_trainer.objectives.sft", "cupola_trainer.data.chat"},
         {"cupola_trainer.pruning.choice", "cupola_trainer.lora.folding"}),
        ("dpo", {"cupola_trainer.objectives.dpo", "cupola_trainer.jobs.reference"},
        {"cupola_trainer.upcycling.layers"}), ("distillation", {"cupola_trainer.objectives.distillation",
        "cupola_trainer.objectives.sft", "cupola_trainer.jobs.teach"}, set()), ("grpo", {"cupola_trainer.rl.grpo",
        "cupola_trainer.conversion.families.gemma2", "cupola_trainer.generation.sampling",
        "cupola_trainer.scoring.sandbox"}, set()), ("warp", {"cupola_trainer.jobs.pareto_front",
        "cupola_trainer.merging.methods"}, set()), ("long_context", {"cupola_trainer.config.lengths", "cupola_trainer.config.model.long_context"}, {"cupola_trainer.config.layout_rules"}),
        ("merge", {"cupola_trainer.merging.methods"}, {"cupola_trainer.training.loop", "cupola_trainer.pruning.choice"}), ("prune", {"cupola_trainer.pruning.choice"}, {"cupola_trainer.training.loop", "cupola_trainer.merging.methods"}),
        ("upcycle", {"cupola_trainer.upcycling.experts", "cupola_trainer.config.model.experts"}, {"cupola_trainer.training.loop"}),
        ("prepare", {"cupola_platform.corpus.deduplication.minhash", "cupola_trainer.evaluation.surprise"},
        {"cupola_trainer.training.loop"}), ("preferences", {"cupola_trainer.generation.sampling",
        "cupola_trainer.jobs.score"}, {"cupola_trainer.training.loop"}), ("pairs", {"cupola_trainer.data.preferences"}, {"cupola_trainer.training.loop", "cupola_trainer.generation.sampling"}),
        ("promote", {"cupola_trainer.jobs.evaluate", "cupola_flows.stages.evaluation.decision"}, set()),
    ],
)  # fmt: skip
def test_a_stage_reaches_what_it_and_its_jobs_run(kind: str, reaches: set[str], leaves: set[str]) -> None:
    found = of(kind)
    assert reaches <= found
    assert not leaves & found


def test_every_stages_fingerprint_covers_its_own_file_and_no_excluded_modules() -> None:
    for kind, stage in kinds().items():
        assert stage.__module__ in of(kind)
        assert all(counts(module) for module in of(kind))


def test_an_objective_that_a_stage_names_is_in_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "toy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cupola.objectives]\ntoy = toy_objective\n")
    (tmp_path / "toy_objective.py").write_text("LOSS = 1\n")
    (tmp_path / "toy_asks.py").write_text('job(objective="toy")\njob(objective="ppo")\n')
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    assert {"toy_objective", "cupola_trainer.rl.ppo"} <= reached(["toy_asks"])


def test_comments_and_docstrings_do_not_change_the_version_but_an_operator_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def version(text: str) -> str:
        (tmp_path / "toy_stage.py").write_text(text)
        forget()
        return code_version.code_version("toy_stage")

    plain = version("def f(x):\n    return x + 1\n")
    assert version('"""About."""\n\n\ndef f(x):\n    """Adds."""\n    # one\n    return x + 1  # more\n') == plain
    assert version("def f(x):\n    return x - 1\n") != plain


def test_a_job_reaches_the_objective_of_its_data(tmp_path: Path) -> None:
    data = SftData(conversations=tmp_path)
    job = TeachJob(output=tmp_path, parent=tmp_path, data=data, steps=1, batch=BatchConfig(sequence_length=8))
    assert {"cupola_trainer.jobs.teach", "cupola_trainer.objectives.sft"} <= reached(code_version.modules_of(job))


def test_folding_adapters_counts_for_stages_that_train_adapters() -> None:
    stage = parse_recipe(
        "name: r\nstages:\n  sft:\n    parent: artifact:a\n    conversations: artifact:b\n    steps: 1\n"
        "    batch: {sequence_length: 64}\n"
    ).stages["sft"]
    assert "cupola_trainer.lora.folding" not in reached(stage.code)
    assert "cupola_trainer.lora.folding" in reached(stage.model_copy(update={"lora": LoraConfig()}).code)


SETTINGS = """
FINGERPRINTED = "functions"

class Settings(Strict):
    steps: int = 1

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        return self

    def half(self) -> int:
        if self.steps < 2:
            raise ConfigError("too few")
        return self.steps // 2
"""


@pytest.mark.parametrize(
    ("old", "new", "counts_in"),
    [
        ("steps: int = 1", "steps: int = 2", False),
        ("steps: int = 1", "steps: int = 1\n    more: int = 0", False),
        ("        return self\n", "        return check(self)\n", False),
        ("too few", "fewer than two", False),
        ("self.steps // 2", "self.steps // 2 + 1", True),
        ("self.steps < 2", "self.steps < 3", True),
    ],
)
def test_only_computing_methods_of_settings_count(
    old: str, new: str, counts_in: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def version(text: str) -> str:
        (tmp_path / "toy_settings.py").write_text(text)
        forget()
        return code_version.code_version("toy_settings")

    assert old in SETTINGS
    assert (version(SETTINGS.replace(old, new)) != version(SETTINGS)) is counts_in


def test_the_nearest_declaration_decides_whether_a_module_counts() -> None:
    assert counts("cupola_trainer.config.lengths") == "functions"
    assert counts("cupola_trainer.config.layout_rules") is None
    assert counts("cupola_flows.execution.jobs") is None
    assert counts("cupola_trainer.training.loop") == "all"
