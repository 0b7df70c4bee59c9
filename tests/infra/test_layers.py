"""import-linter's contracts hold, and each of them can be broken."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LAYERS = ("platform", "trainer", "flows", "dashboards")
PLANTED = (
    "prefect",
    "typer",
    "rich",
    "streamlit",
    "kr8s",
    "mlflow",
    "boto3",
    "botocore",
    "sqlalchemy",
    "alembic",
    "torch",
    "megatron",
)
TORCH_FREE = (
    "cupola_trainer.config",
    "cupola_trainer.config.layout_rules",
    "cupola_trainer.data.instructions",
    "cupola_trainer.data.preferences",
    "cupola_trainer.scoring.tasks",
    "cupola_trainer.scoring.intervals",
    "cupola_trainer.scoring.execution",
    "cupola_flows.recipe.loading",
    "cupola_flows.cli",
)


@pytest.fixture
def house(root: Path, tmp_path: Path) -> Path:
    """A copy of the packages and of the contracts."""
    for layer in LAYERS:
        shutil.copytree(root / layer, tmp_path / layer, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(house / layer) for layer in LAYERS),
        "COLUMNS": "400",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False)


def contracts(house: Path) -> list[str]:
    settings = tomllib.loads((house / "pyproject.toml").read_text())
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


def test_the_layer_contracts_hold(house: Path) -> None:
    result = lint(house)
    assert result.returncode == 0, result.stdout
    assert f"Contracts: {len(contracts(house))} kept, 0 broken." in result.stdout


def test_each_contract_reports_a_planted_violation(house: Path) -> None:
    planted = house / "platform" / "cupola_platform" / "planted.py"
    planted.write_text("".join(f"import {module}\n" for module in ("cupola_flows", *PLANTED)))
    with (house / "trainer" / "cupola_trainer" / "config" / "jobs.py").open("a") as config:
        config.write("import torch\n")

    result = lint(house)

    assert result.returncode == 1
    for name in contracts(house):
        assert f"{name} BROKEN" in result.stdout
    for module in PLANTED:
        assert f"cupola_platform.planted -> {module}" in result.stdout
    assert "cupola_trainer.config.jobs -> torch" in result.stdout  # the path by which flows would reach it


def test_modules_that_flows_call_in_process_load_no_torch() -> None:
    script = f"import sys, {', '.join(TORCH_FREE)}; print([m for m in ('torch', 'megatron', 'mlflow', 'kr8s') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_folder_of_modules_is_a_package_that_the_linter_can_see(root: Path) -> None:
    folders = {module.parent for layer in LAYERS for module in (root / layer).rglob("*.py")}
    alembic = root / "platform" / "cupola_platform" / "registry" / "migrations"  # read by path, never imported
    packages = {folder for folder in folders if alembic not in (folder, *folder.parents)}
    assert sorted(str(folder) for folder in packages if not (folder / "__init__.py").exists()) == []
