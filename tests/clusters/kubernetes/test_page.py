"""docs/clusters.md: what it says to copy fits the schemas and the settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.settings import Settings


@pytest.fixture
def page() -> str:
    text = (Path(__file__).parents[3] / "docs" / "clusters.md").read_text()
    start = text.index("## From a Kubernetes context to a run")
    return text[start : text.index("\n## ", start)]


def block(page: str, language: str) -> str:
    (only,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(only)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_objects_to_copy_fit_kubernetes_schemas(page: str, version: str) -> None:
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(block(page, "yaml")))
    assert [each["kind"] for each in objects] == [
        "Namespace",
        "Role",
        "RoleBinding",
        "PersistentVolumeClaim",
        "NetworkPolicy",
    ]
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_the_settings_to_copy_make_a_launcher_for_the_workspace(page: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, **tomllib.loads(block(page, "toml")))
    launcher = make_launcher(settings, "k8s")
    assert isinstance(launcher, KubernetesLauncher)
    assert launcher.workspace == tmp_path
    assert launcher.cluster == KubernetesCluster(
        launcher="kubernetes", context="my-context", namespace="cupola", image="registry.example.org/cupola:0.3", nodes=8,
        gpus_per_node=8, cpus=96, memory=1500, volume="workspace", secret="store", queue="team-a", user=10001, grace=120,
        interface="eth0",
    )  # fmt: skip
