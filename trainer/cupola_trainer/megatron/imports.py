"""Importing megatron.core: unchanged with CUDA, recompiled for the CPU without.

Megatron-Core hard-codes CUDA throughout. Without CUDA, its modules are compiled with the device retargeted ("cuda"
becomes "cpu", `torch.cuda` becomes `cuda_on_cpu`); torch and all other packages are untouched. The compiled code is
cached next to the usual .pyc files, under a tag derived from both sources, so only the first start parses.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import marshal
import os
import types
from collections.abc import Sequence
from pathlib import Path

import torch

from cupola_trainer.megatron.patches import patch
from cupola_trainer.megatron.versions import check_versions

RENAMED = {
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}
"""Tensor type names that Megatron compares with `tensor.type()`."""

STAND_IN = "cupola_trainer.megatron.cuda_on_cpu"


def find_spec(name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    """The module's usual spec with a loader for this device. The first import in a process checks versions."""
    if name == "megatron.core":
        check_versions()
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        loader = PatchingLoader if torch.cuda.is_available() else RetargetingLoader
        spec.loader = loader(spec.loader.name, spec.loader.path)
    return spec


class PatchingLoader(importlib.machinery.SourceFileLoader):
    """Executes a module, then applies its `patches`."""

    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        patch(module)


class RetargetingLoader(PatchingLoader):
    """Compiles a module for the CPU, or loads cached code."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        tag = hashlib.blake2b(source + OURS, digest_size=8).hexdigest()
        cache = Path(importlib.util.cache_from_source(path, optimization=f"cupola{tag}"))
        try:
            code: types.CodeType = marshal.loads(cache.read_bytes())
        except (OSError, ValueError, EOFError, TypeError):
            code = compile(retarget(source, path), path, "exec", dont_inherit=True)
            _write_cache(cache, marshal.dumps(code))
        return code


OURS = Path(__file__).read_bytes() + importlib.util.MAGIC_NUMBER


def _write_cache(cache: Path, code: bytes) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(code)
        temporary.replace(cache)
    except OSError:
        return  # a read-only installation recompiles at each start


def retarget(source: bytes, path: str) -> ast.Module:
    """A module's syntax tree with device literals and `torch.cuda` replaced for the CPU."""
    tree = _Retarget().visit(ast.parse(source, path))
    first = next((i for i, node in enumerate(tree.body) if not _must_come_first(node)), len(tree.body))
    tree.body.insert(first, ast.parse(f"import {STAND_IN} as _cuda_on_cpu").body[0])
    ast.fix_missing_locations(tree)
    assert isinstance(tree, ast.Module)
    return tree


def _must_come_first(node: ast.stmt) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__")


class _Retarget(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            if node.value == "cuda" or node.value.startswith("cuda:"):
                return ast.copy_location(ast.Constant("cpu"), node)
            return ast.copy_location(ast.Constant(RENAMED.get(node.value, node.value)), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return ast.copy_location(ast.Name("_cuda_on_cpu", node.ctx), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":  # tensor.cuda(...)
            stay = ast.copy_location(ast.Attribute(node.func.value, "cpu", ast.Load()), node.func)
            return ast.copy_location(ast.Call(stay, [], []), node)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        if node.arg == "pin_memory":
            node.value = ast.copy_location(ast.Constant(False), node.value)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "torch.cuda":
            node.module = STAND_IN
        return node
