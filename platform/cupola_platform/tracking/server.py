"""MLflow's server behind the guard, as `mlflow server --app-name cupola` starts it (an entry point of `mlflow.app`)."""

import os
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_platform.security.guard import Guard
from cupola_platform.settings import load_settings


def create_app() -> Any:
    """MLflow's application, protected by the credential in the setting `mlflow_auth_string`.

    Raises:
        ConfigError: the setting is empty, so anyone who reaches the server could use it.
    """
    settings = load_settings()
    if settings.mlflow_auth_string is None:
        raise ConfigError("CUPOLA_MLFLOW_AUTH_STRING is not set. Set it to user:password.")
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"  # the guard checks Host, with one list for all servers

    from mlflow.server.fastapi_app import app

    return Guard(
        app,
        hosts=settings.allowed_hosts,
        credential=settings.mlflow_auth_string.get_secret_value(),
        realm="Cupola: MLflow",
        unasked={"/health"},
    )
