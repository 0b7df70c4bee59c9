"""The console in Debian's Chromium. Any request to another machine fails the test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

CHARTS = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg"


def test_a_running_steps_progress_updates_without_a_reload(
    console: str, tab: Page, growing_metrics: Path, step_line: Callable[..., str]
) -> None:
    tab.goto(console)
    expect(tab.get_by_text("step 50 of 200")).to_be_visible()
    tab.evaluate("window.loadedOnce = true")
    with growing_metrics.open("a") as lines:
        lines.write(step_line(51, 1.234))
    expect(tab.get_by_text("step 51 of 200")).to_be_visible()
    expect(tab.get_by_text("loss 1.234")).to_be_visible()
    assert tab.evaluate("window.loadedOnce")


def test_the_curves_of_a_run_are_drawn_beside_its_metrics(console: str, tab: Page, shown: Any) -> None:
    tab.goto(f"{console}/?run={shown.stage_at_work}")
    detail = tab.locator(".st-key-detail")
    expect(detail.get_by_text("Gradient norm")).to_be_visible()
    expect(detail.get_by_text("Learning rate", exact=True)).to_be_visible()
    expect(detail.locator(CHARTS).nth(3)).to_be_visible()


def test_two_checkpoints_are_compared_side_by_side(console: str, tab: Page, shown: Any) -> None:
    tab.goto(f"{console}/checkpoints?a={shown.sft.id}&b={shown.dpo.id}")
    expect(tab.get_by_text("dpo answers 12.5 points more tasks correctly than sft")).to_be_visible()
    expect(tab.get_by_role("tabpanel").locator(CHARTS).first).to_be_visible()
    tab.get_by_role("tab", name="Generations").click()
    expect(tab.get_by_text("with open(path) as file:")).to_be_visible()
    tab.get_by_role("tab", name="Responses that differ").click()
    expect(tab.get_by_text("Of the 3 prompts kept with both")).to_be_visible()
    tab.get_by_role("tab", name="Curves").click()
    expect(tab.get_by_role("tabpanel").locator(CHARTS).first).to_be_visible()


def test_the_corpus_has_charts_and_its_examples_open(console: str, tab: Page) -> None:
    tab.goto(f"{console}/corpus")
    for heading in ("What each step kept", "Sources", "Languages", "Lengths", "Compression", "Duplicates"):
        expect(tab.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(tab.locator(CHARTS).nth(8)).to_be_visible()
    tab.get_by_text("quality: 300 documents").click()
    expect(tab.get_by_text("a.txt: 12 words: One line.")).to_be_visible()
    expect(tab.get_by_role("button", name="Download as one page")).to_be_visible()


def test_the_lineage_is_laid_out_without_anything_from_outside(console: str, tab: Page) -> None:
    tab.goto(f"{console}/lineage")
    graph = tab.locator("[data-testid=stGraphVizChart] svg")
    expect(graph.get_by_text("14.0 kB")).to_be_visible()
    expect(graph.get_by_text("pretrain", exact=True)).to_be_visible()


def test_the_launch_page_refuses_a_bad_override_with_one_line(console: str, tab: Page) -> None:
    tab.goto(f"{console}/launch")
    steps = tab.get_by_label("pretrain: steps")
    steps.fill("33")
    steps.press("Enter")
    expect(tab.get_by_text("--set stages.pretrain.steps=33")).to_be_visible()
    field = tab.get_by_role("textbox", name="Overrides, one per line")
    field.fill("stages.pretrain.optimiser.lr=1")
    field.press("Control+Enter")
    expect(tab.get_by_text("Did you mean 'optimizer'?")).to_be_visible()
    expect(tab.get_by_role("button", name="Start", exact=True)).to_have_count(0)


def test_every_page_can_be_reached_from_the_first(console: str, tab: Page) -> None:
    tab.goto(console)
    for name in ("Checkpoints", "Lineage", "Corpus", "Annotate", "Launch", "Runs"):
        tab.get_by_role("link", name=name, exact=True).click()
        expect(tab.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(tab.locator("[data-testid=stException]")).to_have_count(0)


def test_a_password_protects_every_page(shown: Any, tab: Page, tmp_path: Path, serve_with: Callable[..., Any]) -> None:
    with serve_with(shown.workspace.root, tmp_path, {"CUPOLA_CONSOLE_PASSWORD": "open sesame"}) as address:
        tab.goto(f"{address}/checkpoints")
        tab.get_by_role("textbox", name="Password").fill("open sesame")
        tab.get_by_role("button", name="Sign in").click()
        expect(tab.get_by_role("heading", name="Checkpoints", exact=True)).to_be_visible()
