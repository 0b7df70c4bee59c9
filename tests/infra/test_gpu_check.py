"""`benchmarks/gpu_check` in its small form, on a CPU: the same code as on a GPU, with tiny models."""

import json
import os
import subprocess
import sys
import time
import types
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SECTIONS = ["probe", "parity", "leaks", "products", "memory", "generation", "speed"]
WRONG = "llama sft"


def gpu_check(root: Path, *arguments: object, path: str = "") -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))}
    return subprocess.run(
        [sys.executable, root / "benchmarks" / "gpu_check", *map(str, arguments)],
        env=variables, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The small form with one wrong number in its reference, and the folder of its result."""
    folder = tmp_path_factory.mktemp("gpu_check")
    reference = json.loads((root / "benchmarks" / "gpu_check" / "reference.json").read_text())
    reference["cases"][WRONG]["grad_norm"][1] *= 1.01
    (folder / "reference.json").write_text(json.dumps(reference))
    return gpu_check(root, "run", "--small", "--out", folder, "--reference", folder / "reference.json"), folder


@pytest.fixture(scope="module")
def result(checked: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checked[1] / "gpu-check.json").read_text())
    return found


@pytest.fixture
def module(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of the check."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return lambda name: import_module(f"gpu_check.{name}")


def names(result: dict[str, Any], status: str) -> list[str]:
    """Names of rows with a status, without those of the forecast, whose lengths are the forecast's business."""
    rows = [row for row in result["rows"] if not row["name"].startswith("the trainer's forecast")]
    return [row["name"] for row in rows if row["status"] == status]


def test_a_wrong_number_is_a_failed_row_and_status_1_and_all_other_sections_run(
    checked: tuple[subprocess.CompletedProcess[str], Path], result: dict[str, Any]
) -> None:
    done, _ = checked
    assert done.returncode == 1, done.stderr
    assert names(result, "failed") == [f"{WRONG} fp32"]
    assert done.stderr.splitlines()[-1].startswith(f"failed: parity: {WRONG} fp32: the reference has loss 6.")
    assert list(result["seconds"]) == SECTIONS
    assert {row["section"] for row in result["rows"]} == set(SECTIONS)


def test_what_this_machine_lacks_is_named_with_its_reason(result: dict[str, Any]) -> None:
    missing = {row["name"]: row["reason"] for row in result["rows"] if row["status"] == "not available"}
    assert missing["GPUs, CUDA and NCCL"] == "torch sees no GPU"
    assert missing["Transformer Engine's layers"] == "transformer_engine is not installed"
    assert missing["Transformer Engine's GroupedLinear"] == "transformer_engine is not installed"
    assert missing["FP8 against bf16"]
    [peak] = [row for row in result["rows"] if row["name"] == "peak"]
    assert peak["figures"]["source"] == "no peak is known for CPU, so there is no MFU: add it to PEAKS"


def test_every_kind_of_row_is_found_on_a_cpu(result: dict[str, Any]) -> None:
    assert names(result, "passed") == [
        "qwen2 sft fp32",
        "qwen2 dpo fp32",
        "qwen2 grpo fp32",
        "qwen2-moe sft fp32",
        "gemma2 sft fp32",
        "dual-chunk sft fp32",
        "qwen2, torch's layers",
        "gemma2, torch's layers",
        "our grouped_linear",
        "torch._grouped_mm",
        "weights, gradients and optimizer",
        "a step's peak at 3,072 tokens",
    ]
    assert names(result, "measured") == [
        "the probe's job",
        "batch 2, prompts of 8 tokens, 8 new",
        "peak",
        "4 experts, top 2, 64 tokens, cupola",
        "4 experts, top 2, 256 tokens, cupola",
        "4 experts, top 2, 64 tokens, transformers",
        "4 experts, top 2, 256 tokens, transformers",
    ]


def test_the_table_has_a_line_for_every_row(
    checked: tuple[subprocess.CompletedProcess[str], Path], result: dict[str, Any]
) -> None:
    done, folder = checked
    table = (folder / "gpu-check.md").read_text()
    assert table in done.stdout
    assert table.startswith("Device: CPU; Python 3.")
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == len(result["rows"]) + 1


def test_a_text_that_leaks_with_transformer_engine_would_be_found(root: Path, tmp_path: Path) -> None:
    stand_ins = str(root / "tests" / "trainer" / "standins")
    leak = tmp_path / "sitecustomize.py"
    leak.write_text(LEAK)
    done = gpu_check(root, "run", "--small", "--only", "leaks", "--out", tmp_path, path=f"{tmp_path}:{stand_ins}")
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert done.returncode == 1
    assert names(found, "failed") == ["qwen2, Transformer Engine's layers"]
    assert names(found, "passed") == [
        "qwen2, torch's layers",
        "gemma2, torch's layers",
        "gemma2, Transformer Engine's layers",
    ]


LEAK = """
import importlib.abc, importlib.util, sys

class Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        forward = module.PackedAttention.forward
        module.PackedAttention.forward = lambda self, q, k, v, *args, packed_seq_params=None, **more: forward(
            self, q, k, v, *args, packed_seq_params=None, **more
        )

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "cupola_trainer.models.attention.transformer_engine":
            return None
        sys.meta_path.remove(Finder)
        spec = importlib.util.find_spec(name)
        spec.loader = Loader(spec.loader)
        return spec

sys.meta_path.insert(0, Finder)
"""
"""Transformer Engine's attention gets each row as one text."""


def test_without_a_gpu_the_full_form_is_refused_in_one_line(root: Path) -> None:
    done = gpu_check(root, "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: torch sees no GPU here, and this is a check of one. Run it where there is a GPU, or the same with tiny "
        "models on a CPU: --small\n"
    )


def test_a_wheel_of_another_python_is_refused_with_the_next_move(root: Path, tmp_path: Path) -> None:
    (tmp_path / "blake3-1.0.11-cp39-cp39-manylinux_2_17_x86_64.whl").touch()
    done = gpu_check(root, "run", "--small", "--wheels", tmp_path)
    version = ".".join(map(str, sys.version_info[:3]))
    assert done.returncode == 2
    assert done.stderr == (
        "error: blake3-1.0.11-cp39-cp39-manylinux_2_17_x86_64.whl is a wheel of another Python (cp39), and this is Python "
        f"{version}. Make the wheels again: gpu_check wheels --python {sys.version_info[0]}.{sys.version_info[1]}\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "transformers-5.23.0-py3-none-any.whl",
        "six-1.17.0-py2.py3-none-any.whl",
        "hf_xet-1.8.0-cp38-abi3-manylinux2014_{machine}.manylinux_2_17_{machine}.whl",
        "numpy-2.4.6-cp{here}-cp{here}-manylinux_2_27_{machine}.manylinux_2_28_{machine}.whl",
    ],
)
def test_wheels_of_this_python_of_any_and_of_its_stable_interface_are_taken(module: Any, name: str) -> None:
    wheels = module("wheels")
    here = f"{sys.version_info[0]}{sys.version_info[1]}"
    wheels._refuse_foreign(name.format(here=here, machine=os.uname().machine))
    with pytest.raises(wheels.WheelError, match="is a wheel for another machine"):
        wheels._refuse_foreign(f"numpy-2.4.6-cp{here}-cp{here}-manylinux_2_28_riscv64.whl")


def test_a_wheel_of_other_code_than_the_tree_is_refused(module: Any, root: Path, tmp_path: Path) -> None:
    wheels = module("wheels")
    own = "cupola_trainer/__init__.py"
    with zipfile.ZipFile(tmp_path / "cupola-0.2.0-py3-none-any.whl", "w") as archive:
        archive.write(root / "trainer" / own, own)
        archive.writestr("cupola_trainer/models/specs.py", "old = True")
    with pytest.raises(wheels.WheelError) as caught:
        wheels.run_installed(tmp_path, [])
    assert str(caught.value) == (
        "cupola-0.2.0-py3-none-any.whl holds another cupola_trainer/models/specs.py than this tree. Make the wheels again."
    )


def test_wheels_are_made_only_for_a_python_that_the_project_supports(root: Path, tmp_path: Path) -> None:
    done = gpu_check(root, "wheels", "--to", tmp_path / "wheels", "--python", "3.14")
    assert done.returncode == 2
    assert done.stderr == "error: --python 3.14: Cupola runs on Python >=3.11,<3.14. Try --python 3.12.\n"
    assert not (tmp_path / "wheels").exists()


def test_a_section_that_takes_too_long_is_ended_and_the_rest_is_told(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: types.ModuleType = module("driver")
    monkeypatch.setitem(driver.SECONDS, "leaks", 0.1)
    rows, seconds = driver.check(["leaks", "memory"], ["--small", "--reference", "none"], time.time() + 10.2)
    assert [(row.section, row.status, row.reason) for row in rows] == [
        ("leaks", "failed", "took longer than 0 s"),
        ("memory", "failed", "no time was left"),
    ]
    assert list(seconds) == ["leaks", "memory"]


def test_a_process_that_dies_is_a_failed_row(module: Any) -> None:
    rows, _ = module("driver").check(["leaks"], ["--unknown"], time.time() + 60)
    assert [(row.section, row.status) for row in rows] == [("leaks", "failed")]
    assert rows[0].reason.startswith("exit status 2: ")
    assert rows[0].reason.endswith("unrecognized arguments: --unknown")


@pytest.mark.slow
def test_the_wheels_of_another_python_are_pinned_and_without_torch(root: Path, tmp_path: Path) -> None:
    done = gpu_check(root, "wheels", "--to", tmp_path, "--python", "3.12")
    assert done.returncode == 0, done.stderr
    wheels = {path.name.split("-")[0]: path for path in tmp_path.glob("*.whl")}
    assert {"cupola", "megatron_core", "numpy", "pydantic_core", "transformers"} <= set(wheels)
    assert not {name for name in wheels if name.startswith(("torch", "nvidia", "triton"))}
    assert sum(path.stat().st_size for path in wheels.values()) < 64 * 2**20
    assert "-cp312-" in wheels["numpy"].name
    version = wheels["numpy"].name.split("-")[1]
    assert f"numpy=={version}" in (root / "constraints.txt").read_text().splitlines()
