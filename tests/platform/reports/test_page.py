"""The page of all reports, and short numbers."""

import pytest

from cupola_platform.reports.page import Html, escape, page, table
from cupola_platform.reports.short_numbers import file_size, power_of_two, short


def test_a_title_is_escaped_and_parts_are_html() -> None:
    made = page("a <b>", "<p>one</p>", "<p>two</p>")
    assert "<title>a &lt;b&gt;</title>" in made
    assert "<h1>a &lt;b&gt;</h1><p>one</p><p>two</p></html>" in made


def test_every_cell_is_escaped_except_html() -> None:
    made = table(("name", "count"), [("<i>", "3"), (Html("<code>x</code>"), "4")], numbers=("count",))
    assert '<tr><th>name</th><th class="n">count</th></tr>' in made
    assert '<tr><td>&lt;i&gt;</td><td class="n">3</td></tr>' in made
    assert '<tr><td><code>x</code></td><td class="n">4</td></tr>' in made


def test_html_is_not_escaped_again_but_strings_made_from_it_are() -> None:
    assert escape(Html("<p>")) == "<p>"
    assert escape(Html("<p>") + "<script>") == "&lt;p&gt;&lt;script&gt;"


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        (short(812), "812"),
        (short(12_400), "12.4k"),
        (short(3_100_000), "3.1M"),
        (power_of_two(512), "512"),
        (power_of_two(2048), "2K"),
        (file_size(999), "999 B"),
        (file_size(3_100_000), "3.1 MB"),
    ],
)
def test_big_numbers_are_short(spelt: str, expected: str) -> None:
    assert spelt == expected
