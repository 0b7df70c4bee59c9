"""Text of models, runs and file names is shown literally in the console, and nothing in it is fetched."""

import html
import json
import re
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from playwright.sync_api import Page, expect
from tests.dashboards.conftest import REPORT, proportion, write_metrics

from cupola_dashboards.text import plain
from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.report.page import render
from cupola_platform.workspace import Workspace


class Trap:
    """A server that records requests."""

    def __init__(self) -> None:
        self.visits: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.visits.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bait(self, name: str) -> str:
        """Markdown, HTML, a formula, an emoji and a colour, each of which a careless page would render."""
        url = f"http://127.0.0.1:{self.server.server_port}/{name}"
        return f"{name} ![x]({url}) <img src={url}-img> `tick` **bold** :red[red] $x^2$ :smile: [link]({url})"


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    found = Trap()
    yield found
    found.server.shutdown()


@dataclass(frozen=True)
class Planted:
    """A workspace in which every text is bait."""

    address: str
    failed: str
    a: str
    b: str


@pytest.fixture(scope="module")
def planted(trap: Trap, tmp_path_factory: pytest.TempPathFactory, serve_with: Callable[..., Any]) -> Iterator[Planted]:
    root = tmp_path_factory.mktemp("planted")
    ws = Workspace.open(root / "home")
    bait = trap.bait
    tokens = publish(ws, bait("prepare"), "tokens", corpus_files(bait))
    a = publish(ws, bait("sft"), "checkpoint", {"model.json": "{}", "w": "a"}, tokens, marks=bait("lr-a"))
    b = publish(ws, bait("dpo"), "checkpoint", {"model.json": "{}", "w": "b"}, tokens, marks=bait("lr-b"))
    entries = {bait("sft"): measured(a, bait, "wrong"), bait("dpo"): measured(b, bait, "right")}
    results = {"unigram_bits_per_byte": 3.0, "checkpoints": entries}
    publish(ws, bait("evaluate"), "evaluation", {"results.json": json.dumps(results)}, a, b, tokens)
    pair = {
        "id": "1",
        "messages": [{"role": bait("role"), "content": bait("question")}],
        "chosen": bait("chosen"),
        "rejected": bait("rejected"),
    }
    publish(ws, bait("preferences"), "preferences", {"train.jsonl": json.dumps(pair)}, a)
    ws.registry.set_alias("champion", a.digest, bait("reason"))
    failed = ws.registry.start_run(bait("recipe"), bait("stage"), config={bait("key"): bait("value")})
    ws.registry.finish_run(failed, "failed", error=bait("error"))
    running = ws.registry.start_run(bait("running"), config={"stages": {bait("waiting"): {}}})
    stage = ws.registry.start_run(bait("running"), bait("at-work"), running)
    ws.registry.update_run(stage, work_folder=ws.work_folder("w" * 64))
    write_metrics(ws.work_folder("w" * 64), 3, of=9)
    with serve_with(ws.root, tmp_path_factory.mktemp("log"), {}) as address:
        yield Planted(address, failed, a.id, b.id)
    ws.registry.close()


def publish(
    ws: Workspace, stage: str, kind: str, files: dict[str, str], *parents: Artifact, marks: str = ""
) -> Artifact:
    folder = ws.folder(f"made/{re.sub('[^a-z]', '', stage[:12])}")
    for name, text in files.items():
        (folder / name).write_text(text)
    if kind == "tokens":
        row = {"source": stage, "split": "train", "path": stage, "language": stage, "tokens": 6, "text": stage}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "documents.parquet")
    config = {"lr": marks} if marks else {}
    return ws.publish(folder, kind=kind, parents=parents, stage=stage, recipe=stage, config=config)


def measured(checkpoint: Artifact, bait: Callable[[str], str], verdict: str) -> dict[str, Any]:
    right = verdict == "right"
    response = {
        "prompt": bait("prompt"),
        "response": bait(verdict),
        "expected": bait("expected"),
        "score": float(right),
    }
    accuracy = proportion(150, 200, 0.69, 0.8) if right else proportion(10, 200, 0.03, 0.09)
    return {
        "digest": checkpoint.digest,
        "bits_per_byte": 2.0,
        "accuracy": accuracy,
        "tasks": {bait("task"): accuracy, bait("another"): accuracy},
        "responses": [response],
        "generations": [{"prompt": bait("beginning"), "completion": bait(f"goes-on-{verdict}")}],
    }


def corpus_files(bait: Callable[[str], str]) -> dict[str, str]:
    """A corpus report whose steps, reasons, sources and examples are bait."""
    report = deepcopy(REPORT)
    source = bait("prepare")
    for name in ("sources", "mixture"):
        report[name] = {source: report[name]["library"]}
    for step in report["steps"]:
        step["step"] = bait(step["step"].replace(" ", "-"))
        step["sources"] = {source: step["sources"]["library"]}
        for dropped in step["dropped"]:
            dropped["reason"] = bait("dropped")
            dropped["examples"] = [{"document": bait("document"), "detail": bait("detail"), "text": bait("text")}]
    report["duplicates"] = {report["steps"][1]["step"]: report["duplicates"]["near duplicates"]}
    report["languages"] = {bait("language"): report["languages"]["en"]}
    line = {"source": source, "path": source, "bytes": 14_000, "blake3": "0" * 64}
    return {
        "report.json": json.dumps(report), "report.html": render(report), "sources.jsonl": json.dumps(line) + "\n"
    }  # fmt: skip


def shown(tab: Page, trap: Trap, *names: str) -> None:
    """Check that each bait is on the page, letter by letter."""
    for name in names:
        expect(tab.get_by_text(trap.bait(name)).first).to_be_attached()


def test_runs_errors_and_names_are_plain_text(planted: Planted, trap: Trap, tab: Page) -> None:
    tab.goto(f"{planted.address}/?run={planted.failed}")
    shown(tab, trap, "error", "recipe", "running", "waiting", "at-work", "sft")
    tab.get_by_text("Settings").click()
    expect(tab.get_by_test_id("stJson")).to_be_visible()
    assert trap.visits == []


def test_checkpoints_responses_and_verdicts_are_plain_text(planted: Planted, trap: Trap, tab: Page) -> None:
    tab.goto(f"{planted.address}/checkpoints?a={planted.a}&b={planted.b}")
    shown(tab, trap, "dpo", "sft")
    for name, texts in (
        ("Curves", ()),
        ("Generations", ("beginning", "goes-on-wrong", "goes-on-right")),
        ("Responses that differ", ("prompt", "expected", "wrong", "right")),
        ("Settings", ()),
        ("Lineage", ("prepare",)),
    ):
        tab.get_by_role("tab", name=name).click()
        shown(tab, trap, *texts)
    assert tab.locator(f"img[src*=':{trap.server.server_port}']").count() == 0
    named = "links => links.filter(link => !link.href.startsWith(link.textContent)).map(link => link.outerHTML)"
    assert (
        tab.eval_on_selector_all(f"a[href*=':{trap.server.server_port}']", named) == []
    )  # a link may be an address, never a text
    assert trap.visits == []


def test_the_corpus_its_reasons_and_its_documents_are_plain_text(planted: Planted, trap: Trap, tab: Page) -> None:
    tab.goto(f"{planted.address}/corpus")
    shown(tab, trap, "prepare")
    tab.get_by_text("300 documents").first.click()
    shown(tab, trap, "dropped")
    expect(tab.get_by_text(f"{trap.bait('document')}: {trap.bait('detail')}").first).to_be_attached()
    tab.get_by_text("6 tokens").first.click()
    assert trap.visits == []


def test_pairs_and_lineages_are_plain_text(planted: Planted, trap: Trap, tab: Page) -> None:
    tab.goto(f"{planted.address}/annotate")
    tab.get_by_label("Your name").fill("ada")
    tab.get_by_label("Your name").press("Enter")
    shown(tab, trap, "role", "question", "chosen", "rejected")
    tab.goto(f"{planted.address}/lineage")
    shown(tab, trap, "sft", "prepare")
    assert trap.visits == []


def test_a_corpus_page_by_itself_is_plain_text(trap: Trap, tab: Page) -> None:
    tab.set_content(corpus_files(trap.bait)["report.html"])
    expect(tab.get_by_text(trap.bait("dropped")).first).to_be_attached()
    assert trap.visits == []


def test_text_for_markdown_has_no_markup_left() -> None:
    assert plain("a **b**  [c](d)\n`e`") == ("a &#42;&#42;b&#42;&#42; &#32;&#91;c&#93;&#40;d&#41; &#96;e&#96;")
    for text in ("    indented", "1. one", "- item", "# heading", "é ü 中", "$x$ :smile: :red[x] ~~y~~ <b> &amp;"):
        assert html.unescape(plain(text)) == text
        assert not re.search(r"[*_`\[\]()<>$:~!|\\]|^ |  ", plain(text))
