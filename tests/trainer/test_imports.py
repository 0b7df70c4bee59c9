"""megatron.core is compiled for the CPU where there is no CUDA, once; nothing else is touched."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cupola_trainer.runtime.imports import retarget

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="megatron.core is imported as it is where CUDA is")


@pytest.mark.parametrize(
    ("source", "retargeted"),
    [
        ("torch.zeros(1, device='cuda')", "torch.zeros(1, device='cpu')"),
        ("x.to(f'cuda:{i}')", "x.to(f'cpu{i}')"),
        ("x.cuda(non_blocking=True)", "x.cpu()"),
        ("torch.cuda.synchronize()", "_cuda_on_cpu.synchronize()"),
        ("torch.empty(1, pin_memory=True)", "torch.empty(1, pin_memory=False)"),
        ("x.type() == 'torch.cuda.HalfTensor'", "x.type() == 'torch.HalfTensor'"),
        ("from torch.cuda import current_stream", "from cupola_trainer.runtime.cuda_on_cpu import current_stream"),
        ("'the word cuda in a sentence'", "'the word cuda in a sentence'"),
    ],
)
def test_devices_are_moved_and_sentences_are_not(source: str, retargeted: str) -> None:
    lines = ast.unparse(retarget(f"from __future__ import annotations\n{source}".encode(), "m.py")).splitlines()
    assert lines[0] == "from __future__ import annotations"
    assert lines[1] == "import cupola_trainer.runtime.cuda_on_cpu as _cuda_on_cpu"
    assert lines[2:] == [retargeted]


@without_cuda
def test_the_second_start_takes_the_compiled_code_of_the_first(tmp_path: Path) -> None:
    code = "import cupola_trainer, megatron.core.jit, torch; print(torch.cuda.synchronize.__module__)"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    written = []
    for _ in range(2):
        done = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], env=environment, text=True)
        assert done == "torch.cuda\n"  # torch itself stays as it is
        written.append([path.stat().st_mtime_ns for path in tmp_path.rglob("jit.cpython-311.opt-cupola*.pyc")])
    assert len(written[0]) == 1
    assert written[1] == written[0]
