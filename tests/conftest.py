"""What every test shares: no setting, workspace or tracking server of the person who runs the suite reaches a test."""

import os

import pytest

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two threads spin for each other wherever something else wants their cores
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


os.environ.update(ENVIRONMENT)  # before a test module imports torch


@pytest.fixture(autouse=True, scope="session")
def _isolated_environment() -> None:
    for name in [name for name in os.environ if name.startswith(("CUPOLA_", "MLFLOW_", "PREFECT_API_"))]:
        del os.environ[name]
