"""Version of the code that a stage's result depends on, found by following imports from the stage and its jobs.

The syntax tree is hashed, so a changed comment or docstring does not retrain anything. A module or package that cannot
change a result declares it, with the reason: `FINGERPRINTED = False  # reports progress`. It is left out, with
everything that only it imports. Settings declare `FINGERPRINTED = "functions"`: their values are in the fingerprint
anyway, so what their methods compute counts, while fields, defaults, validators and messages do not. The nearest
declaration applies.
"""

import ast
import importlib.util
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import grimp

from cupola_platform.artifacts.digests import digest_bytes, digest_files
from cupola_platform.errors import ConfigError
from cupola_trainer import config

DECLARATION = "FINGERPRINTED"
OURS = ("cupola_platform", "cupola_trainer", "cupola_flows")
MEGATRON = "cupola_trainer.megatron.imports"
"""Adapts Megatron to this machine when it is imported."""


def job_module(kind: str) -> str:
    """The trainer module that runs a job."""
    return f"cupola_trainer.jobs.{kind}"


def modules_of(job: config.AnyJob) -> list[str]:
    """The trainer module that runs a job, and that of its objective."""
    data = getattr(job, "data", None)
    return [job_module(job.kind), *sorted(_objective(data.objective) if data else ())]


_PARSING = threading.Lock()


@cache
def code_version(*entries: str) -> str:
    """BLAKE3 of the syntax trees of these modules and everything that they, and the jobs they start, import.

    Args:
        entries: module names, which count regardless of their declaration. Of plugins, only these modules and their
            imports of Cupola count.
    """
    return digest_files((module, _syntax_digest(module)) for module in sorted(reached(entries)))


def reached(entries: Iterable[str]) -> set[str]:
    """The modules whose code is hashed."""
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [each for each in (*_imports(module), *_started(module)) if counts(each)]
    return seen


def counts(module: str) -> Literal["all", "functions"] | None:
    """How much of an imported module is hashed; None for nothing."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if (declared := _declared(".".join(parts[:end]))) is not None:
            return "functions" if declared == "functions" else "all" if declared else None
    return "all"


@cache
def _declared(module: str) -> bool | str | None:
    """The value that a module assigns to FINGERPRINTED; None without an assignment."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == DECLARATION:
            value: bool | str = ast.literal_eval(node.value)
            return value
    return None


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
    if {"__path__", "iter_modules"} <= _identifiers(module):  # a package that imports all modules in its folder
        imported |= graph.find_children(module)
    return imported


def _identifiers(module: str) -> set[str]:
    """Names and attributes that a module's code uses."""
    nodes = list(ast.walk(_tree(module)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _started(module: str) -> set[str]:
    """Modules that a module runs in other processes: those named in its string constants, as for `python -m`, and those
    of the jobs and objectives whose classes it imports."""
    texts = {node.value for node in ast.walk(_tree(module)) if isinstance(node, ast.Constant)}
    modules = {text for text in texts if isinstance(text, str) and text in _graph().modules}
    if not module.startswith("cupola_flows") and module.startswith(OURS):
        return modules
    for of, name in _imported_names(module):
        made = getattr(config, name, None) if of == config.__name__ else None
        fields = getattr(made, "model_fields", {})
        if "kind" in fields:
            modules.add(job_module(fields["kind"].default))
        if "objective" in fields:
            modules |= _objective(fields["objective"].default)
    for name in _named_objectives(module):
        modules |= _objective(name)
    return modules


def _objective(name: str | None) -> set[str]:
    """The module of an objective, Cupola's or a plugin's."""
    places = {f"cupola_trainer.{folder}.{name}" for folder in ("rl", "objectives")} & _graph().modules
    return places or {point.value for point in entry_points(group="cupola.objectives") if point.name == name}


def _named_objectives(module: str) -> set[str]:
    """The names in `objective="..."`, by which a stage overrides the objective of its data."""
    return {
        node.value.value
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.keyword) and node.arg == "objective"
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _imported_names(module: str) -> set[tuple[str, str]]:
    """(module, name) of each `from module import name` in a module's source, and (module, module) of each import."""
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
    return _parsed(module)


def _parsed(module: str) -> ast.Module:
    """A new syntax tree. In older Pythons two threads that parse at once make each other fail (python/cpython#106905),
    as stages that run side by side would."""
    with _PARSING:
        return ast.parse(_source(module).read_bytes())


def _source(module: str) -> Path:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # only the top package: finding a submodule would import its parents
    if spec is None or spec.origin is None:
        raise ConfigError(f"Module {module!r} not found. Install it, or correct the name.")
    path = Path(spec.origin)
    if not rest:
        return path
    inner = path.parent.joinpath(*rest)
    return inner.with_suffix(".py") if inner.with_suffix(".py").is_file() else inner / "__init__.py"


def _syntax_digest(module: str) -> str:
    """Digest of the syntax tree without docstrings, comments, line ends and positions."""
    tree = _parsed(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    if counts(module) == "functions":
        tree.body = list(_computing(tree))
    return digest_bytes(ast.dump(tree).encode())


def _computing(tree: ast.Module) -> Iterator[ast.stmt]:
    """The functions and methods of a settings module, without validators and error messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not any(
            "validator" in ast.unparse(each) for each in node.decorator_list
        ):
            for part in ast.walk(node):
                if isinstance(part, ast.Raise):
                    part.exc = part.cause = None
            yield node


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
