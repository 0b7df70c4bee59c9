"""A small workspace with handwritten results, published through the platform, and a console that shows it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

import cupola_dashboards
from cupola_flows.recipe.loading import load_recipe
from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.report.page import render
from cupola_platform.workspace import Workspace

CHROMIUM = "/usr/bin/chromium"
CONSOLE = Path(cupola_dashboards.__file__).parent / "server.py"
EPOCH = 1_700_000_000.0

REPORT: dict[str, Any] = {
    "steps": [
        {
            "step": "quality", "documents_in": 1000, "bytes_in": 8_000_000, "documents_out": 700,
            "bytes_out": 6_000_000, "changed": 0, "edited": [],
            "sources": {
                "library": {"documents_in": 1000, "bytes_in": 8_000_000, "documents_out": 700, "bytes_out": 6_000_000},
            },
            "dropped": [
                {
                    "reason": "too short", "documents": 250, "bytes": 100_000,
                    "examples": [{"document": "a.txt", "detail": "12 words", "text": "One line."}],
                },
                {"reason": "mostly symbols", "documents": 50, "bytes": 1_900_000, "examples": []},
            ],
        },
        {
            "step": "near duplicates", "documents_in": 700, "bytes_in": 6_000_000, "documents_out": 600,
            "bytes_out": 5_000_000, "changed": 9,
            "edited": [{"kind": "email", "documents": 9, "count": 12, "examples": []}],
            "sources": {
                "library": {"documents_in": 700, "bytes_in": 6_000_000, "documents_out": 600, "bytes_out": 5_000_000},
            },
            "dropped": [{"reason": "like another", "documents": 100, "bytes": 1_000_000, "examples": []}],
        },
    ],
    "sources": {
        "library": {
            "train": {"documents": 540, "tokens": 1_200_000, "bytes": 4_500_000},
            "heldout": {"documents": 60, "tokens": 130_000, "bytes": 500_000},
        },
    },
    "languages": {
        "en": {"documents": 580, "tokens": 1_250_000, "bytes": 4_800_000},
        "de": {"documents": 20, "tokens": 80_000, "bytes": 200_000},
    },
    "lengths": {"512": 200, "2048": 400},
    "duplicates": {
        "near duplicates": {
            "clusters": 60, "dropped": 100, "sizes": {"2": 50, "4": 10},
            "largest": [{"document": "b.txt", "documents": 7}],
        },
    },
    "mixture": {"library": {"tokens": 1_200_000, "share_of_tokens": 1.0, "share_of_samples": 1.0}},
    "compression": {
        "text": "held-out", "languages": {"en": {"ours": 3.84, "qwen": 4.2}, "de": {"ours": 2.5, "qwen": 3.9}},
    },
    "vocab_size": 4096,
    "bytes_per_token": 3.76,
}  # fmt: skip


def proportion(correct: int, total: int, low: float, high: float) -> dict[str, float]:
    """An accuracy with its interval, in the form of results.json."""
    return {"accuracy": correct / total, "low": low, "high": high, "correct": correct, "total": total}


def results(sft: str, dpo: str) -> dict[str, Any]:
    """results.json of two checkpoints: 100 of 200 right (Wilson 95%: 43.1% to 56.9%), and 125 of 200 (55.6% to
    68.9%)."""
    return {
        "unigram_bits_per_byte": 4.5,
        "checkpoints": {
            "sft": {
                "digest": sft, "bits_per_byte": 2.0, "heldout_loss": 3.1, "heldout_tokens": 32768,
                "accuracy": proportion(100, 200, 0.431, 0.569),
                "tasks": {
                    "chain_sum": proportion(40, 100, 0.309, 0.498),
                    "letter_counting": proportion(60, 100, 0.502, 0.691),
                },
                "responses": [
                    {"prompt": "3 + 4 =", "response": "8", "expected": "7", "score": 0.0},
                    {"prompt": "2 + 2 =", "response": "4", "expected": "4", "score": 1.0},
                    {"prompt": "9 - 5 =", "response": "4", "expected": "4", "score": 1.0},
                ],
                "generations": [{"prompt": "def read_file(path):", "completion": "\n    return open(path)"}],
            },
            "dpo": {
                "digest": dpo, "bits_per_byte": 2.008, "heldout_loss": 3.11, "heldout_tokens": 32768,
                "accuracy": proportion(125, 200, 0.556, 0.689),
                "tasks": {
                    "chain_sum": proportion(65, 100, 0.553, 0.736),
                    "letter_counting": proportion(60, 100, 0.502, 0.691),
                },
                "responses": [
                    {"prompt": "3 + 4 =", "response": "7", "expected": "7", "score": 1.0},
                    {"prompt": "2 + 2 =", "response": "4", "expected": "4", "score": 1.0},
                    {"prompt": "9 - 5 =", "response": "3", "expected": "4", "score": 0.0},
                ],
                "generations": [{"prompt": "def read_file(path):", "completion": "\n    with open(path) as file:"}],
            },
        },
    }  # fmt: skip


def write_metrics(folder: Path, steps: int, *, of: int, loss: float = 8.0) -> Path:
    """metrics.jsonl of a job that has done `steps` of `of` steps, two seconds each, with the loss halved."""
    events: list[dict[str, Any]] = [
        {
            "event": "start",
            "time": EPOCH,
            "kind": "train",
            "step": 0,
            "steps": of,
            "world_size": 2,
            "parameters": 1_500_000,
        },
        {"event": "evaluate", "time": EPOCH, "step": 0, "heldout_loss": loss},
        *(step_event(step, loss * (1 - step / (2 * of))) for step in range(1, steps + 1)),
    ]
    if steps == of:
        events += [
            {"event": "evaluate", "time": EPOCH + 2 * of, "step": of, "heldout_loss": loss * 0.55},
            {"event": "end", "time": EPOCH + 2 * of, "step": of, "status": "completed"},
        ]
    path = folder / "job" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def step_event(step: int, loss: float) -> dict[str, Any]:
    """One step's line."""
    return {
        "event": "step", "time": EPOCH + 2 * step, "step": step, "loss": loss, "grad_norm": 1.5, "lr": 1e-3,
        "tokens_per_second": 5000.0 + step, "consumed_samples": 8 * step,
    }  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """The workspace of these tests, and its ids."""

    workspace: Workspace
    tokens: Artifact
    sft: Artifact
    dpo: Artifact
    finished: str
    failed: str
    running: str
    stage_at_work: str
    live_metrics: Path


def fill(root: Path) -> Shown:
    """Publish a corpus, three checkpoints and their evaluation; register a finished, a failed and a running run."""
    ws = Workspace.open(root)
    recipe = load_recipe("tiny").model_dump(mode="json")
    whole = ws.registry.start_run("tiny", config=recipe)
    made: dict[str, Artifact] = {}

    def publish(
        stage: str, kind: str, files: dict[str, str], parents: list[str], metrics: dict[str, float], steps: int = 0
    ) -> None:
        fingerprint = f"{stage:f<64}"
        work = ws.work_folder(fingerprint)
        run = ws.registry.start_run("tiny", stage, whole, recipe["stages"][stage])
        ws.registry.update_run(run, work_folder=work)
        if steps:
            write_metrics(work, steps, of=steps)
        folder = work / "result"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        if kind == "tokens":
            write_documents(folder / "documents.parquet")
        made[stage] = ws.publish(
            folder, kind=kind, parents=[made[name] for name in parents], stage=stage, recipe="tiny",
            fingerprint=fingerprint, config=recipe["stages"][stage], metrics=metrics, run_id=run,
        )  # fmt: skip
        ws.registry.finish_run(run, "completed", made[stage].digest)

    source = {"source": "library", "path": "json/__init__.py", "bytes": 14_000, "blake3": "0" * 64}
    files = {
        "report.json": json.dumps(REPORT), "report.html": render(REPORT), "sources.jsonl": json.dumps(source) + "\n"
    }  # fmt: skip
    publish("prepare", "tokens", files, [], {"documents": 600.0})
    publish("pretrain", "checkpoint", {"model.json": "{}", "w": "dense"}, ["prepare"], {"loss": 4.0}, 40)
    publish("conversations", "conversations", {"train.jsonl": "{}"}, ["prepare"], {"train_conversations": 1.0})
    publish("sft", "checkpoint", {"model.json": "{}", "w": "sft"}, ["pretrain", "conversations"], {"loss": 4.0}, 30)
    publish("preferences", "preferences", {"train.jsonl": '{"id": 1}'}, ["sft", "conversations"], {"train_pairs": 1.0})
    publish("dpo", "checkpoint", {"model.json": "{}", "w": "dpo"}, ["sft", "preferences"], {"loss": 4.0}, 20)
    measured = json.dumps(results(made["sft"].digest, made["dpo"].digest))
    publish("evaluate", "evaluation", {"results.json": measured}, ["sft", "dpo", "prepare"], {})
    ws.registry.set_alias("champion", made["pretrain"].digest, "The first one.")
    ws.registry.set_alias("champion", made["sft"].digest, "Accuracy 50.0% is clearly above the baseline's.")
    ws.registry.finish_run(whole, "completed")
    failed, _ = start(ws, "failing", "pretrain", steps=3)
    log = ws.folder("logs") / f"pretrain-{'failing':x<12}.log"
    log.write_text("rank 0 ready\nRuntimeError: the disk is full\n")
    for run in ws.registry.runs(parent=failed):
        ws.registry.finish_run(
            run.id, "failed", error=f"stage pretrain: its processes ended with status 1. Log: {log}\n..."
        )
    ws.registry.finish_run(failed, "failed", error="stage pretrain: its processes ended with status 1.")
    running, live = start(ws, "watched", "pretrain", steps=50)
    stage = ws.registry.runs(parent=running)[0].id
    return Shown(ws, made["prepare"], made["sft"], made["dpo"], whole, failed, running, stage, live)


def start(ws: Workspace, name: str, stage: str, *, steps: int) -> tuple[str, Path]:
    """Register a run in its first training stage, with `steps` of 200 done; returns its id and the metrics file."""
    recipe = load_recipe("tiny").model_dump(mode="json")
    run = ws.registry.start_run(name, config=recipe)
    inner = ws.registry.start_run(name, stage, run, recipe["stages"][stage])
    work = ws.work_folder(f"{name:x<64}")
    ws.registry.update_run(inner, work_folder=work)
    return run, write_metrics(work, steps, of=200)


def write_documents(path: Path) -> None:
    """documents.parquet with two documents."""
    rows = [
        {"id": "library:1", "source": "library", "path": "json/__init__.py", "language": "en", "split": "train",
         "bytes": 20, "tokens": 6, "digest": "0", "text": "JSON encoder and decoder."},
        {"id": "library:2", "source": "library", "path": "csv.py", "language": "en", "split": "heldout",
         "bytes": 20, "tokens": 6, "digest": "1", "text": "CSV reading and writing."},
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    filled = fill(tmp_path_factory.mktemp("console") / "workspace")
    yield filled
    filled.workspace.registry.close()


@pytest.fixture
def growing_metrics(shown: Shown) -> Iterator[Path]:
    """The metrics of the running stage, restored after the test."""
    before = shown.live_metrics.read_text()
    yield shown.live_metrics
    shown.live_metrics.write_text(before)


@pytest.fixture
def in_workspace(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Point this process's settings to the workspace of these tests."""
    monkeypatch.setenv("CUPOLA_HOME", str(shown.workspace.root))
    return shown


@pytest.fixture(scope="session")
def console(shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a console, started as `cupola up` starts it."""
    with serve(shown.workspace.root, tmp_path_factory.mktemp("console-log"), {}) as address:
        yield address


@pytest.fixture(scope="session")
def step_line() -> Callable[[int, float], str]:
    return lambda step, loss: json.dumps(step_event(step, loss)) + "\n"


@pytest.fixture(scope="session")
def serve_with() -> Callable[..., Any]:
    return serve


class serve:
    """A console process, ended after the block."""

    def __init__(self, root: Path, logs: Path, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = logs / "console.log"
        command = [sys.executable, "-m", "streamlit", "run", str(CONSOLE), "--server.address", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--server.port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            cwd=logs,
            env={**os.environ, "CUPOLA_HOME": str(root), **environment},
        )

    def __enter__(self) -> str:
        address = f"http://127.0.0.1:{self.port}"
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                    return address
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise AssertionError(f"The console did not start:\n{self.log.read_text()}")

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium, restricted to this machine."""
    expect.set_options(timeout=120_000)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield opened
    opened.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which any request to another machine fails the test."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(120_000)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not _inside(request.url) else None)
    yield page
    context.close()
    assert outside == []


@pytest.fixture
def settled(tab: Page) -> Callable[[], None]:
    """Wait until the page is drawn; before that, old elements remain and keys are lost."""
    return lambda: expect(tab.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


def _inside(url: str) -> bool:
    return url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
