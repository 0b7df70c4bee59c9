"""Charts are self-contained and deterministic, and untrusted names in them are text."""

import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from threading import Thread

import pytest

from cupola_platform.reports.charts import Bar, Cell, Chart, bars, columns, cut, grouped, heatmap
from cupola_platform.reports.page import page

BAIT = '</title></text><script src=//x></script><b onload="x">"&$\\frac{1}{0}$ ]]><!--\x00\x07\n漢字'

CHARTS: dict[str, Callable[[str], str]] = {
    "bars": lambda text: bars([Bar(text, 3, 2, text, text), Bar(text, 2, 1)], about=text),
    "narrow bars": lambda text: bars([Bar(text, 3, 2, text, text)], about=text, width=470),
    "grouped": lambda text: grouped([(text, [(1, text), (2, text)])], (text, text), about=text),
    "columns": lambda text: columns([(text, 3), (text, 1)], about=text, numbers=[text, text]),
    "heatmap": lambda text: heatmap([Cell(0, 0, 0.5, text)], ["none"], ["512"], about=text),
    "lines": lambda text: lines(text),
}


def lines(text: str) -> str:
    with Chart(text) as chart:
        (line,) = chart.axes.plot([1, 2], [3, 4], label=text)
        chart.hint(line, text)
        chart.axes.set_xlabel(text)
        chart.legend()
    return chart.svg


class Parsed(HTMLParser):
    """Tags, attributes and text of a page, parsed as in a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.references: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.references |= {str(value) for name, value in attrs if name.endswith("href")}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("kind", CHARTS)
def test_untrusted_text_is_shown_as_text(kind: str) -> None:
    plain, baited = Parsed(page("x", CHARTS[kind]("plain"))), Parsed(page("x", CHARTS[kind](BAIT)))
    assert baited.tags - plain.tags <= {"defs", "path", "use"}  # from glyphs and markers, never from the bait
    assert not baited.tags & {"script", "b", "a", "image", "foreignobject"}
    assert not {name for name in baited.attributes if name.startswith("on")}
    assert all(reference.startswith("#") for reference in baited.references)
    assert any("</title></text><scr" in text for text in baited.texts)


def test_text_that_looks_like_mathematics_is_shown_literally() -> None:
    assert "$x_1$ $\\frac{1}{0}$" in bars([Bar("$x_1$ $\\frac{1}{0}$", 1, 1)], about="x")


@pytest.mark.parametrize("kind", CHARTS)
def test_equal_charts_are_equal_files_and_contain_no_address(kind: str) -> None:
    drawn = CHARTS[kind]("plain")
    assert drawn == CHARTS[kind]("plain")
    assert drawn.startswith('<svg role="img" aria-label="plain" width="')
    assert "http" not in drawn
    assert 'id="hint' not in drawn


def test_ids_are_unique_within_a_page() -> None:
    assert '<g id="' not in lines("plain") + CHARTS["heatmap"]("plain")


def test_hints_are_attached_to_what_they_explain() -> None:
    drawn = bars([Bar("read", 3, 2, hint="3 in, 2 out")], about="steps")
    assert drawn.count("<title>3 in, 2 out</title>") == 2


def test_no_data_gives_an_empty_chart() -> None:
    for drawn in (bars([], about="x"), grouped([], ("a", "b"), about="x"), columns([], about="x", numbers=[])):
        assert drawn.startswith("<svg ")


def test_a_long_label_leaves_room_for_the_chart() -> None:
    assert cut("x" * 35) == "x" * 35
    assert cut("x" * 36) == "x" * 34 + "…"
    assert cut("x" * 36, 470) == "x" * 18 + "…"


def test_charts_may_be_drawn_by_several_threads() -> None:
    alone = lines("$a$")
    drawn: list[str] = []
    threads = [Thread(target=lambda: drawn.append(lines("$a$"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [alone] * 4


def test_a_chart_that_fails_leaves_nothing_behind() -> None:
    from matplotlib import rcParams

    before = dict(rcParams)
    with pytest.raises(ValueError, match="broken"), Chart("x"):
        raise ValueError("broken")
    assert dict(rcParams) == before
    assert lines("again")


def test_matplotlib_is_imported_only_when_drawing() -> None:
    modules = "cupola_platform.reports.charts, cupola_platform.corpus.report.page, cupola_flows.cli"
    script = f"import sys, {modules}; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
