"""The workspace given by the settings, opened once, and the addresses of the servers' own pages."""

import json
import os
from pathlib import Path

import streamlit as st

from cupola_flows.servers import services
from cupola_platform.security.urls import shown
from cupola_platform.settings import load_settings
from cupola_platform.workspace import Workspace


def workspace() -> Workspace:
    """The workspace (CUPOLA_HOME, cupola.toml), shared by all sessions.

    Raises:
        ConfigError: a setting is invalid.
        StoreError, RegistryError: the store or registry cannot be reached.
    """
    settings = load_settings()
    opened: Workspace = _open(settings.model_dump_json(), str(settings.home))
    return opened


@st.cache_resource(show_spinner=False, max_entries=4)
def _open(settings: str, home: Path) -> Workspace:
    return Workspace.open(home, patience=0)  # pages show errors at once


@st.cache_data(ttl=30, show_spinner=False)
def server_pages() -> dict[str, str]:
    """Addresses of the servers' pages (`prefect`, `mlflow`), from `cupola up` or else from the settings."""
    if given := os.environ.get("CUPOLA_PAGES"):
        return dict(json.loads(given))
    settings = load_settings()
    pages = {service.name: service.url.removesuffix("/api") for service in services.status(settings) if service.url}
    if settings.prefect_api_url:
        pages["prefect"] = settings.prefect_api_url.removesuffix("/api")
    if (settings.mlflow_tracking_uri or "").startswith("http"):
        pages["mlflow"] = str(settings.mlflow_tracking_uri)
    return {name: shown(page) for name, page in pages.items()}


def prefect_page(flow_run: str | None) -> str | None:
    """The address of a flow run on Prefect's server."""
    server = server_pages().get("prefect")
    return f"{server}/runs/flow-run/{flow_run}" if server and flow_run else None


def mlflow_page(run: str | None) -> str | None:
    """The address of a run on MLflow's server."""
    server = server_pages().get("mlflow")
    return f"{server}/#/runs/{run}" if server and run else None
