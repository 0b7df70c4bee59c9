"""What every test shares: no setting, workspace or tracking server of the person who runs the suite reaches a test."""

import os

import pytest

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


@pytest.fixture(autouse=True, scope="session")
def _isolated_environment() -> None:
    for name in [name for name in os.environ if name.startswith(("CUPOLA_", "MLFLOW_", "PREFECT_API_"))]:
        del os.environ[name]
    os.environ.update(OFFLINE)
