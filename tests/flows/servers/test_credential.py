"""A Prefect server that requires a credential."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cupola_flows.servers.prefect_api import own_prefect
from cupola_platform.settings import Settings


@pytest.mark.slow  # a Prefect server with a new database
def test_deploying_and_submitting_to_a_protected_server_need_the_credential(
    cupola: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_prefect(Settings(home=tmp_path / "server")) as server:
        api = server.wait()
        url = api.url
        assert api.credential
        assert httpx.post(f"{url}/deployments/filter", json={}).status_code == 401
        monkeypatch.setenv("CUPOLA_PREFECT_API_URL", url)
        for wrong in ("", "cupola:wrong"):
            monkeypatch.setenv("CUPOLA_PREFECT_API_AUTH_STRING", wrong)
            refused = cupola("deploy", str(recipe))
            assert refused.returncode == 2
            assert refused.stderr == (
                f"cupola: error: {url} refused the credential. "
                "Set CUPOLA_PREFECT_API_AUTH_STRING to the server's user:password.\n"
            )
        monkeypatch.setenv("CUPOLA_PREFECT_API_AUTH_STRING", api.credential.get_secret_value())
        deployed = cupola("deploy", str(recipe))
        assert deployed.returncode == 0, deployed.stderr
        run = json.loads(cupola("submit", str(recipe), "--json").stdout)["flow_run_id"]
        done = cupola("run", str(recipe), "--set", "stages.pretrain.steps=2")
        assert done.returncode == 0, done.stderr
        assert "continues without" not in done.stdout
        with api.client(timeout=30) as client:
            assert client.get(f"/flow_runs/{run}").json()["state"]["type"] == "SCHEDULED"
            flows = client.post("/flow_runs/filter", json={}).json()
        assert sorted(flow["name"] for flow in flows if flow["state"]["type"] == "COMPLETED") == [
            "prepare", "pretrain", "short",
        ]  # fmt: skip
