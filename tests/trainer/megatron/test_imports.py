"""Without CUDA, megatron.core is compiled for the CPU, once; nothing else is touched."""

import ast
import importlib.util
import marshal
from pathlib import Path

import pytest
import torch

from cupola_trainer.megatron.imports import RetargetingLoader, retarget


@pytest.mark.parametrize(
    ("source", "retargeted"),
    [
        ("torch.zeros(1, device='cuda')", "torch.zeros(1, device='cpu')"),
        ("x.to(f'cuda:{i}')", "x.to(f'cpu{i}')"),
        ("x.cuda(non_blocking=True)", "x.cpu()"),
        ("torch.cuda.synchronize()", "_cuda_on_cpu.synchronize()"),
        ("torch.empty(1, pin_memory=True)", "torch.empty(1, pin_memory=False)"),
        ("x.type() == 'torch.cuda.HalfTensor'", "x.type() == 'torch.HalfTensor'"),
        ("from torch.cuda import current_stream", "from cupola_trainer.megatron.cuda_on_cpu import current_stream"),
        ("y = 'the word cuda in a sentence'", "y = 'the word cuda in a sentence'"),
    ],
)
def test_device_strings_are_replaced_and_sentences_are_not(source: str, retargeted: str) -> None:
    lines = ast.unparse(retarget(f"from __future__ import annotations\n{source}".encode(), "m.py")).splitlines()
    assert lines[0] == "from __future__ import annotations"
    assert lines[1] == "import cupola_trainer.megatron.cuda_on_cpu as _cuda_on_cpu"
    assert lines[2:] == [retargeted]


def device_of(path: Path) -> str:
    """The module's device after import."""
    spec = importlib.util.spec_from_loader("module", RetargetingLoader("module", str(path)))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.device)


def test_the_second_start_uses_the_cached_code(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("device = 'cuda'")
    assert device_of(module) == "cpu"
    (compiled,) = tmp_path.rglob("module.*.opt-cupola*.pyc")
    compiled.write_bytes(marshal.dumps(compile("device = 'kept'", "module.py", "exec")))
    assert device_of(module) == "kept"
    module.write_text("device = 'cuda:1'")
    assert device_of(module) == "cpu"


def test_a_corrupt_cache_file_is_recompiled(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("device = 'cuda'")
    RetargetingLoader("module", str(module)).get_code("module")
    (compiled,) = tmp_path.rglob("module.*.opt-cupola*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:10])
    assert device_of(module) == "cpu"


def test_torch_itself_is_unchanged() -> None:
    import megatron.core.jit

    assert megatron.core.jit.torch is torch
    assert torch.cuda.synchronize.__module__ == "torch.cuda"
