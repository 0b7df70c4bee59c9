"""What a stage runs is in its fingerprint: the lists are held to the import graph, as grimp reads it from the sources."""

from collections.abc import Collection, Iterable

import grimp
import pytest

from cupola_flows import stage_code
from cupola_flows.session import FUNCTIONS
from cupola_flows.stages import KINDS

LEFT_OUT = (
    # who says how far a job is, keeps it alive, and carries its files
    "cupola_trainer.metrics",
    "cupola_trainer.reporting",
    "cupola_trainer.step_log",
    "cupola_trainer.sample_log",
    "cupola_trainer.profiling",
    "cupola_trainer.timing",
    "cupola_trainer.watchdog",
    "cupola_trainer.autosave",
    "cupola_flows.jobs",
    "cupola_flows.context",
    "cupola_flows.uploading",
    "cupola_platform.launch",
    "cupola_platform.living",
    "cupola_platform.durable",
    "cupola_platform.settings",
    "cupola_platform.store",
    "cupola_platform.workspace",
    "cupola_flows.display",
    "cupola_flows.dropping",
    # who refuses what cannot be, and computes nothing
    "cupola_trainer.identity",
    "cupola_platform.errors",
    "cupola_flows.nearest",
    "cupola_flows.validation",
    # values: the fingerprint has them, defaults included
    "cupola_trainer.config",
    "cupola_trainer.presets",
    "cupola_flows.recipe",
    "cupola_flows.schema",
    "cupola_flows.stages",
    "cupola_platform.strict",
    # fingerprints themselves, and what finds an artifact by one
    "cupola_flows.stage_code",
    "cupola_flows.fingerprint",
    "cupola_flows.layouts",
    "cupola_platform.artifacts",
)
"""Modules, with what is in them, that cannot change what a stage gives."""

LOGIC = ("cupola_trainer.config.lengths", "cupola_trainer.config.making")
"""Configurations that compute: in the fingerprints of the stages that are of them."""

TRAINS = ("cupola_trainer.loop", "cupola_trainer.objectives")
LEARNS = "cupola_trainer.reinforcement"
JOBS = {
    "prepare": (),
    "pretrain": TRAINS,
    "upcycle": ("cupola_trainer.jobs.upcycle",),
    "long_context": TRAINS,
    "conversations": (),
    "synthesize": ("cupola_trainer.jobs.sample", "cupola_trainer.jobs.score"),
    "sft": TRAINS,
    "preferences": ("cupola_trainer.jobs.sample", "cupola_trainer.jobs.score"),
    "pairs": (),
    "dpo": (*TRAINS, "cupola_trainer.jobs.reference"),
    "reward": TRAINS,
    "distillation": (*TRAINS, "cupola_trainer.jobs.teach"),
    "merge": ("cupola_trainer.jobs.merge", "cupola_trainer.config.making"),
    "prune": ("cupola_trainer.jobs.prune", "cupola_trainer.config.making"),
    "grpo": (*TRAINS, LEARNS),
    "ppo": (*TRAINS, LEARNS),
    "online_dpo": (*TRAINS, LEARNS),
    "warp": (*TRAINS, LEARNS, "cupola_trainer.jobs.front", "cupola_trainer.jobs.merge"),
    "evaluate": ("cupola_trainer.jobs.evaluate",),
    "promote": ("cupola_trainer.jobs.evaluate",),
}
"""Stage kind to where its jobs enter the trainer (`cupola_trainer.__main__`), and what computes in its configuration."""


def is_within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_left_out(module: str) -> bool:
    return is_within(module, LEFT_OUT) and module not in LOGIC


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Who imports whom; what cannot change a result imports nothing, so that what is behind it alone is not reached."""
    graph = grimp.build_graph(
        "cupola_platform", "cupola_trainer", "cupola_flows", exclude_type_checking_imports=True, cache_dir=None
    )
    for module in graph.modules:
        if is_left_out(module):
            for imported in graph.find_modules_directly_imported_by(module):
                graph.remove_import(importer=module, imported=imported)
    return graph


def reached(graph: grimp.ImportGraph, entries: Collection[str]) -> set[str]:
    within = {module for entry in entries for module in {entry, *graph.find_descendants(entry)}}
    return within.union(*(graph.find_upstream_modules(module) for module in within))


def missing(graph: grimp.ImportGraph, entries: Collection[str], listed: Collection[str]) -> set[str]:
    return {module for module in reached(graph, entries) if not is_left_out(module) and not is_within(module, listed)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_that_a_stage_reaches_is_in_its_fingerprint(imports: grimp.ImportGraph, kind: str) -> None:
    entries = (FUNCTIONS[kind].__module__, *JOBS[kind])
    assert missing(imports, entries, stage_code.OF_KIND[kind]) == set()


@pytest.mark.parametrize(
    ("entries", "listed"),
    [
        (("cupola_trainer.jobs.merge_adapter", "cupola_trainer.lora"), (*stage_code.TRAINING, *stage_code.ADAPTER)),
        (("cupola_trainer.evaluation.surprise",), stage_code.JUDGE),
        (("cupola_trainer.jobs.reference",), stage_code.REFERENCE),
        (("cupola_trainer.jobs.teach",), stage_code.TEACHER),
        (("cupola_flows.laws", *TRAINS), stage_code.TRIALS),
        (("cupola_flows.mixing", *TRAINS, "cupola_trainer.jobs.evaluate"), stage_code.TRIALS),
    ],
)
def test_so_is_what_a_stage_runs_besides(
    imports: grimp.ImportGraph, entries: tuple[str, ...], listed: tuple[str, ...]
) -> None:
    assert missing(imports, entries, listed) == set()


def test_a_module_that_is_not_listed_is_found(imports: grimp.ImportGraph) -> None:
    listed = [module for module in stage_code.OF_KIND["pretrain"] if module != "cupola_trainer.kernels"]
    assert "cupola_trainer.kernels.linear_cross_entropy" in missing(imports, ["cupola_trainer.loop"], listed)
