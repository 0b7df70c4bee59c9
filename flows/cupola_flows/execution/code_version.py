"""The code that decides what a stage gives, found by following imports from the stage's file and from its jobs.

What is hashed is the syntax tree: a changed comment or docstring trains nothing again. Left out, with all that only it
imports, is what cannot change a result: who tells of progress, keeps a job alive, carries its files, refuses what
cannot be, and the settings, whose values a fingerprint has anyway.
"""

import ast
import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import grimp

from cupola_platform.artifacts.digests import digest_bytes, digest_files
from cupola_platform.errors import ConfigError
from cupola_trainer import config

OURS = ("cupola_platform", "cupola_trainer", "cupola_flows")
ASIDE = (
    # tells of progress, keeps a job alive, carries its files
    "cupola_trainer.reporting.metrics",
    "cupola_trainer.reporting.progress",
    "cupola_trainer.training.step_log",
    "cupola_trainer.training.sample_log",
    "cupola_trainer.training.profiling",
    "cupola_trainer.training.timing",
    "cupola_trainer.training.watchdog",
    "cupola_trainer.training.autosave",
    "cupola_flows.execution.jobs",
    "cupola_flows.execution.context",
    "cupola_flows.execution.uploading",
    "cupola_flows.terminal.display",
    "cupola_flows.execution.drops",
    "cupola_flows.terminal.text",
    "cupola_platform.launch",
    "cupola_platform.liveness",
    "cupola_platform.durable",
    "cupola_platform.settings",
    "cupola_platform.store",
    "cupola_platform.workspace",
    # refuses, and computes nothing
    "cupola_trainer.training.identity",
    "cupola_trainer.checkpoint.compatibility",
    "cupola_platform.errors",
    "cupola_platform.aliases",
    "cupola_flows.terminal.nearest",
    "cupola_flows.recipe.validation",
    # values
    "cupola_trainer.config",
    "cupola_trainer.config.model.presets",
    "cupola_flows.recipe.loading",
    "cupola_flows.recipe.schema",
    "cupola_flows.stages.base",
    "cupola_flows.stages.table",
    "cupola_platform.strict",
    # fingerprints themselves, and what finds an artifact by one
    "cupola_flows.execution.code_version",
    "cupola_flows.runs.fingerprint",
    "cupola_flows.experiments.layout_comparison",
    "cupola_platform.artifacts",
)
MEGATRON = "cupola_trainer.megatron.imports"
"""Fits Megatron to this machine whenever it is imported."""
COMPUTES = ("cupola_trainer.config.lengths", "cupola_trainer.config.checkpoint_jobs")
"""Settings that compute something."""


def job_module(kind: str) -> str:
    """Where a job enters the trainer."""
    return f"cupola_trainer.jobs.{kind}"


def modules_of(job: config.AnyJob) -> list[str]:
    """Where a job enters the trainer, and the objective whose rows it reads."""
    data = getattr(job, "data", None)
    return [job_module(job.kind), *sorted(_objective(data.objective) if data else ())]


@cache
def code_version(*entries: str) -> str:
    """BLAKE3 over the syntax of all modules that these modules, and the jobs that they start, import.

    Args:
        entries: dotted names. Modules of plugins count alone: what they import of ours follows.
    """
    return digest_files((module, _syntax_digest(module)) for module in sorted(reached(entries)))


def reached(entries: Iterable[str]) -> set[str]:
    """The modules whose code counts."""
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in seen and not is_aside(module):
            seen.add(module)
            waiting += [*_imports(module), *_started(module)]
    return seen


def is_aside(module: str) -> bool:
    """Whether a module cannot change a result."""
    within = any(module == part or module.startswith(f"{part}.") for part in ASIDE)
    return within and module not in COMPUTES


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph(*OURS, exclude_type_checking_imports=True, cache_dir=None)


def _imports(module: str) -> set[str]:
    graph, names = _graph(), {name for _, name in _imported_names(module)}
    if not module.startswith(OURS):
        return names & graph.modules
    imported = graph.find_modules_directly_imported_by(module) if module in graph.modules else set()
    if any(name.startswith("megatron.") for name in names):
        imported |= {MEGATRON}
    if {"__path__", "iter_modules"} <= _words(module):  # a package that imports whatever lies in its folder
        imported |= graph.find_children(module)
    return imported


def _words(module: str) -> set[str]:
    """Names and attributes that a module's code uses."""
    nodes = list(ast.walk(_tree(module)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _started(module: str) -> set[str]:
    """What a module starts in other processes: modules that its texts name, as for `python -m`; and where the jobs that
    it makes enter the trainer, known by their classes, and by those of what they learn from."""
    texts = {node.value for node in ast.walk(_tree(module)) if isinstance(node, ast.Constant)}
    modules = {text for text in texts if isinstance(text, str) and text in _graph().modules}
    if not module.startswith("cupola_flows") and module.startswith(OURS):
        return modules
    for of, name in _imported_names(module):
        made = getattr(config, name, None) if of == "cupola_trainer.config" else None
        fields = getattr(made, "model_fields", {})
        if "kind" in fields:
            modules.add(job_module(fields["kind"].default))
        if "objective" in fields:
            modules |= _objective(fields["objective"].default)
    for name in _objectives_asked_for(module):
        modules |= _objective(name)
    return modules


def _objective(name: str | None) -> set[str]:
    """The module of an objective: ours, or a plugin's."""
    places = {f"cupola_trainer.{folder}.{name}" for folder in ("rl", "objectives")} & _graph().modules
    return places or {point.value for point in entry_points(group="cupola.objectives") if point.name == name}


def _objectives_asked_for(module: str) -> set[str]:
    """The names in `objective="..."`, by which a stage asks for another objective than that of its data."""
    return {
        node.value.value
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.keyword) and node.arg == "objective"
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _imported_names(module: str) -> set[tuple[str, str]]:
    """(module, name) of `from module import name` anywhere in a module's source, and (module, module) of both."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {(node.module, alias.name) for alias in node.names} | {(node.module, node.module)}
            names |= {(node.module, f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {(alias.name, alias.name) for alias in node.names}
    return names


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module).read_bytes())


def _source(module: str) -> Path:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the top only: finding a submodule would import its parents
    if spec is None or spec.origin is None:
        raise ConfigError(f"No module {module!r} to take the code of. Install it, or correct the name.")
    path = Path(spec.origin)
    if not rest:
        return path
    inner = path.parent.joinpath(*rest)
    return inner.with_suffix(".py") if inner.with_suffix(".py").is_file() else inner / "__init__.py"


def _syntax_digest(module: str) -> str:
    """Of the tree without docstrings: neither they nor comments, line ends and places are in it."""
    tree = ast.parse(_source(module).read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return digest_bytes(ast.dump(tree).encode())


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
