"""The repository's own rules: file sizes, no local paths, the README's commands, recipes, versions."""

import ast
import re
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from cupola_flows.recipe.loading import load_recipe, shipped

PACKAGES = ("platform", "trainer", "flows", "dashboards")
MOST_LINES = 400
PATH_OF_A_MACHINE = re.compile(r"(?<![\w.$}])/(?:work|root|home/[a-z]+|opt/pypi[a-z-]*)/|\.\./shared\b")
DEVICE = re.compile(r"torch\.cuda\b|\"cuda\"|'cuda'|\"nccl\"|\"gloo\"")


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, dict]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def test_no_module_is_longer_than_four_hundred_lines(root: Path) -> None:
    modules = [module for package in PACKAGES for module in (root / package).rglob("*.py")]
    lengths = {str(module.relative_to(root)): len(module.read_text().splitlines()) for module in modules}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_file_names_a_local_path(root: Path, tracked: list[Path]) -> None:
    named = {
        str(path.relative_to(root)): found[0] for path in tracked if (found := PATH_OF_A_MACHINE.search(text_of(path)))
    }
    assert named == {}


def test_only_the_runtime_and_megatrons_patches_know_cpu_from_gpu(root: Path) -> None:
    trainer = root / "trainer" / "cupola_trainer"
    aware = {trainer / "runtime", trainer / "megatron"}
    modules = [module for module in trainer.rglob("*.py") if aware.isdisjoint(module.parents)]
    assert [str(module.relative_to(root)) for module in modules if DEVICE.search(module.read_text())] == []


def test_no_function_splits_json_lines_at_separators_that_strings_may_hold(root: Path) -> None:
    split = re.compile(r" in [^\n]*\.splitlines\(|\blines = [^\n]*\.splitlines\(")
    found = [
        f"{module.relative_to(root)}:{node.lineno}"
        for package in PACKAGES
        for module in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(text_of(module)))
        if isinstance(node, ast.FunctionDef) and "json.loads" in (code := ast.unparse(node)) and split.search(code)
    ]
    assert found == []


def test_the_readme_names_the_two_commands_and_ci_runs_the_second(root: Path) -> None:
    readme = (root / "README.md").read_text()
    makefile = (root / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert (root / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def test_pre_commit_runs_the_environments_own_tools_and_downloads_nothing(root: Path) -> None:
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert (Path(sys.executable).parent / Path(hook["entry"].split()[0]).name).exists()


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_changelog_tells_of_this_version(root: Path, pyproject: dict[str, dict]) -> None:
    assert f"## [{pyproject['project']['version']}] - " in (root / "CHANGELOG.md").read_text()


def test_the_license_is_apache_2(root: Path, pyproject: dict[str, dict]) -> None:
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (root / "LICENSE").read_text()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the pins are those of Python 3.11")
def test_constraints_pin_every_installed_package_to_what_is_installed(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)] == []
    pinned = {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}
    site_packages = [sysconfig.get_path("purelib")]  # without those vendored by setuptools
    ours = {"cupola", "pip"}
    installed = {
        canonical(each.name): each.version.partition("+")[0] for each in metadata.distributions(path=site_packages)
    }
    differing = {
        name: version for name, version in installed.items() if name not in ours and pinned.get(name) != version
    }
    assert differing == {}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
