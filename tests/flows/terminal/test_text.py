"""Untrusted text is printed literally: no terminal interprets it, and rich reads no markup from it."""

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cupola_flows import cli
from cupola_flows.cli import app
from cupola_flows.cli.checkpoints import base as checkpoint
from cupola_flows.reports.comparison import print_comparison
from cupola_flows.reports.lineage import as_tree
from cupola_flows.reports.results import print_evaluation
from cupola_flows.terminal.display import LiveDisplay, PlainDisplay
from cupola_flows.terminal.text import in_markdown, visible
from cupola_platform.workspace import LineageNode, SourceSummary, Workspace

EVIL = "[red]x[/] [bold\x1b]0;title\x07\x1b[2J\x9b31m \u202eright\r"
SHOWN = r"[red]x[/] [bold\x1b]0;title\x07\x1b[2J\x9b31m \u202eright\r"


def drawn(render: Any) -> str:
    """The output on a terminal with colours."""
    out = StringIO()
    render(Console(file=out, force_terminal=True, width=400, color_system="standard"))
    return out.getvalue()


def unstyled(text: str) -> str:
    """The text without rich's own colours, the only escape sequences that are allowed."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def assert_harmless(text: str, times: int = 1) -> None:
    plain = unstyled(text)
    assert not any(mark in plain for mark in ("\x1b", "\x07", "\x9b", "\u202e"))
    assert plain.count(SHOWN) >= times


def test_control_characters_are_escaped_and_other_text_is_unchanged() -> None:
    assert visible(EVIL) == SHOWN
    for text in ("é 中 🙂‍↔️ ü", "two\nlines\tand a tab", "[red]"):
        assert visible(text) == text
    visible("half \ud800").encode()


def test_responses_and_names_of_an_evaluation_are_printed_literally() -> None:
    entry = {
        "bits_per_byte": 2.0,
        "accuracy": None,
        "tasks": {EVIL: {"accuracy": 0.5}},
        "responses": [{"prompt": EVIL, "response": EVIL, "score": 1.0}],
        "generations": [{"prompt": EVIL, "completion": EVIL}],
    }
    results = {"unigram_bits_per_byte": 3.0, "checkpoints": {EVIL: entry}}
    text = drawn(lambda console: print_evaluation(EVIL, results, console))
    assert_harmless(text, times=6)


def test_a_comparison_is_printed_literally() -> None:
    side: dict[str, Any] = {"id": EVIL, "stage": EVIL, "model": {}, "evaluation": None, "only_here": [EVIL]}
    comparison = {
        "same_evaluation": False,
        "missing": EVIL,
        "settings": [{"stage": EVIL, "setting": EVIL, "a": EVIL, "b": "2"}],
        "checkpoints": [side, side],
    }
    assert_harmless(drawn(lambda console: print_comparison(comparison, console)), times=4)


def test_progress_and_lineage_are_printed_literally() -> None:
    def live(console: Console) -> None:
        display = LiveDisplay({EVIL: "sft"}, console)
        display.finished(EVIL, "failed", EVIL)
        display.say(EVIL)
        console.print(display.table())

    assert_harmless(drawn(live), times=3)
    written: list[str] = []
    plain = PlainDisplay({EVIL: "sft"}, written.append)
    plain.finished(EVIL, "failed", EVIL)
    plain.say(EVIL)
    assert_harmless("".join(written), times=3)
    source = SourceSummary(EVIL, 1, 1)
    child = LineageNode(digest="b" * 64, kind="tokens", stage=EVIL, metrics={EVIL: 1.0}, sources=(source,))
    node = LineageNode(digest="a" * 64, kind="checkpoint", stage=EVIL, metrics={}, parents=(child,))
    assert_harmless(drawn(lambda console: console.print(as_tree(node))), times=4)


def test_generated_text_is_escaped_on_a_terminal_and_unchanged_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = Workspace.open(tmp_path / "home")
    (ws.folder("made/one") / "model.json").write_text("{}")
    made = ws.publish(ws.folder("made/one"), kind="checkpoint", stage="sft")
    # stands in for the model's process, which has its own tests
    monkeypatch.setattr(checkpoint, "convert", lambda *_: EVIL)
    arguments = ["checkpoint", "generate", made.id, "--prompt", "x", "--workspace", str(ws.root)]
    assert CliRunner().invoke(app, arguments).stdout == EVIL
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    checkpoint.generate_command(made.id, "x", workspace=ws.root)
    assert capsys.readouterr().out == SHOWN


def test_an_error_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli._refuse(EVIL, 2)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"cupola: error: {SHOWN}\n"


def test_text_for_markdown_keeps_no_punctuation() -> None:
    assert in_markdown("a **b**  [c](d)\n`e`") == ("a &#42;&#42;b&#42;&#42; &#32;&#91;c&#93;&#40;d&#41; &#96;e&#96;")
    assert in_markdown(7.5) == "7&#46;5"
