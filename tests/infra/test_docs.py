"""Commands and recipes in the docs work as written."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cupola_flows.cli import app
from cupola_flows.recipe.loading import parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "BENCHMARKS.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")
COMMAND = re.compile(r"^(?:    |\s*\$ )cupola (.+)$|`cupola ([^`]+)`", re.MULTILINE)
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", text))
    slugs = [re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    repeats = [slugs[:i].count(slug) for i, slug in enumerate(slugs)]
    return {f"{slug}-{repeat}" if repeat else slug for slug, repeat in zip(slugs, repeats, strict=True)}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page whose file or whose heading is not there."""
    broken = []
    for file, anchor in LINK.findall(INLINE.sub("", FENCED.sub("", page.read_text()))):
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(f"{file}#{anchor}" if anchor else file)
    return broken


def test_the_readme_leads_to_every_page(root: Path) -> None:
    links = {file for file, _ in LINK.findall((root / "README.md").read_text())}
    assert {name for name in PAGES if name.startswith("docs/")} <= links


def test_every_link_of_a_page_leads_to_a_file_and_a_heading(tracked: list[Path]) -> None:
    pages = [path for path in tracked if path.suffix == ".md"]
    assert {str(page): broken for page in pages if (broken := broken_links(page))} == {}


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text(
        "# The page\n\n```\n# A comment\n```\n\n## What `it` is: twice\n## What it is: twice\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](there.md) [b](there.md#what-it-is-twice) [c](there.md#what-it-is-twice-1) [d](#top) "
        "[e](https://example.org/missing.md) `[f](missing.md)` [g](missing.md) [h](there.md#a-comment) [i](#bottom)"
    )
    assert broken_links(page) == ["missing.md", "there.md#a-comment", "#bottom"]


@pytest.mark.parametrize("name", PAGES)
def test_every_command_on_a_page_exists_with_its_options(root: Path, name: str) -> None:
    wrong = []
    for found in COMMAND.finditer((root / name).read_text().replace("\\\n", " ")):
        line = found[1] or found[2]
        words = shlex.split(line, comments=True)
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        if (hasattr(command, "commands") and words and not words[0].isupper()) or options - known:
            wrong.append(line)
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_every_whole_recipe_on_a_page_loads(root: Path, name: str) -> None:
    for block in BLOCK.findall((root / name).read_text()):
        if any({"name", "stages"} <= set(document or {}) for document in yaml.safe_load_all(block)):
            parse_recipe(block)
