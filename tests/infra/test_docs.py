"""What the pages tell a newcomer to type is what the commands take."""

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
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:    |\s*\$ )cupola (.+)$|`cupola ([^`]+)`", re.MULTILINE)
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_readme_leads_to_every_page_and_no_link_leads_nowhere(root: Path) -> None:
    links = {name: LINK.findall((root / name).read_text()) for name in PAGES}
    assert {name for name in PAGES if name.startswith("docs/")} <= set(links["README.md"])
    dead = {
        name: [to for to in found if not (root / name).parent.joinpath(to).exists()] for name, found in links.items()
    }
    assert {name: found for name, found in dead.items() if found} == {}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_on_a_page_is_there_with_its_options(root: Path, name: str) -> None:
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
        if {"name", "stages"} <= set(yaml.safe_load(block) or {}):
            parse_recipe(block)
