"""The launch page with a real Prefect server: the server gets what was filled in."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cupola_flows.orchestration import deployments
from cupola_flows.servers.prefect_api import own_prefect
from cupola_platform.settings import Settings, load_settings


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Settings]:
    """Settings for a Prefect server with the recipe `tiny` deployed, but without a worker, so nothing is trained."""
    with own_prefect(load_settings(tmp_path / "workspace")) as server:
        api = server.wait()
        settings = Settings(
            home=tmp_path / "workspace", prefect_api_url=api.url, prefect_api_auth_string=api.credential
        )
        command = [str(Path(sys.executable).with_name("cupola")), "deploy", "tiny", "--workspace", str(settings.home)]
        subprocess.run(command, check=True, capture_output=True, timeout=500, env={**os.environ, **variables(settings)})
        yield settings


def variables(settings: Settings) -> dict[str, str]:
    assert settings.prefect_api_auth_string
    return {
        "CUPOLA_PREFECT_API_URL": str(settings.prefect_api_url),
        "CUPOLA_PREFECT_API_AUTH_STRING": settings.prefect_api_auth_string.get_secret_value(),
    }


@pytest.mark.slow  # a Prefect server with a new database, a deployment, a console
def test_a_filled_in_recipe_is_started_through_its_deployment(
    served: Settings, tab: Page, settled: Callable[[], None], tmp_path: Path, serve_with: Callable[..., Any]
) -> None:
    api = str(served.prefect_api_url)
    with serve_with(served.home, tmp_path, variables(served)) as address:
        tab.goto(f"{address}/launch")
        tab.get_by_role("combobox", name="Recipe").click()
        tab.get_by_role("option", name="tiny", exact=True).click()
        expect(tab.get_by_text("cupola submit tiny", exact=True)).to_be_visible()
        settled()
        steps = tab.get_by_label("pretrain: steps")
        steps.fill("12")
        steps.press("Enter")
        expect(tab.get_by_text("cupola submit tiny --set stages.pretrain.steps=12")).to_be_visible()
        tab.get_by_role("button", name="Start", exact=True).click()
        link = tab.get_by_role("link", name="Open in Prefect")
        expect(link).to_be_visible()
        started = str(link.get_attribute("href"))
    assert started.startswith(f"{api.removesuffix('/api')}/runs/flow-run/")
    run = deployments.flow_run(started.rpartition("/")[2], served)
    assert run["parameters"]["recipe"] == "tiny"
    assert run["parameters"]["overrides"] == ["stages.pretrain.steps=12"]
    assert run["state"]["type"] == "SCHEDULED"
