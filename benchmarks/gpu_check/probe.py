"""The probe's job on this machine: what it lists of GPUs, drivers and NCCL."""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from cupola_platform.launch.rendezvous import torchrun
from cupola_trainer.config import LayoutConfig, ProbeJob, ProbeReport, write_job
from cupola_trainer.config.probe import REPORT, TOKEN
from gpu_check.rows import Section


def run(section: Section) -> None:
    """Run the job on one rank and compare its report with what torch and the driver's own tool say."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-probe-") as folder:
        section.attempt("the probe's job", lambda: _probe(section, Path(folder)))


def _probe(section: Section, folder: Path) -> None:
    output, rendezvous = folder / "job", folder / "rendezvous"
    output.mkdir()
    rendezvous.mkdir(mode=0o700)
    job = ProbeJob(output=output, layout=LayoutConfig(), token=secrets.token_hex(16))
    (output / TOKEN).write_text(job.token)
    write_job(job, output / "job.json")
    command, variables = torchrun(1, rendezvous)
    done = subprocess.run(
        [*command, "-m", "cupola_trainer", str(output / "job.json")],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=section.seconds, check=False,
    )  # fmt: skip
    if done.returncode:
        section.failed("the probe's job", f"exit status {done.returncode}: {_last_line(done.stderr)}")
        return
    [node] = ProbeReport.model_validate_json((output / REPORT).read_text()).nodes
    section.measured(
        "the probe's job",
        {"versions": json.dumps(node.versions), "matrix products, TFLOP/s": node.matmul_flops / 1e12},
    )
    _gpus(section, node.gpus, node.versions)


def _gpus(section: Section, listed: tuple[tuple[str, float], ...], versions: dict[str, str]) -> None:
    """The GPUs are those that the driver lists, and the versions of CUDA and NCCL are there."""
    if not torch.cuda.is_available():
        section.unavailable("GPUs, CUDA and NCCL", "torch sees no GPU")
        return
    missing = sorted({"CUDA", "NCCL"} - set(versions))  # the driver is known only where /proc has it
    theirs = _nvidia_smi()
    names = [name for name, _ in listed]
    section.judged(
        "GPUs, CUDA and NCCL",
        bool(names) and not missing and (theirs is None or names == theirs),
        {"GPUs": ", ".join(f"{name} {memory:.1f} GiB" for name, memory in listed)},
        "the GPUs that nvidia-smi lists, and both versions",
        f"nvidia-smi lists {theirs}, versions missing: {missing}",
    )


def _nvidia_smi() -> list[str] | None:
    """The GPUs' names; None where the tool is missing or limited to others than torch."""
    if not shutil.which("nvidia-smi") or "CUDA_VISIBLE_DEVICES" in os.environ:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else None


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line]
    return lines[-1][:200] if lines else ""
