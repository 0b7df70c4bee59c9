"""MLflow's server behind the guard, as `mlflow server --app-name cupola` starts it (an entry point of `mlflow.app`)."""

import os
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_platform.security.guard import Guard
from cupola_platform.settings import load_settings


def create_app() -> Any:
    """MLflow's application, for people and programs with the credential of the setting `mlflow_auth_string`.

    Raises:
        ConfigError: there is none: such a server would be anyone's who reaches it.
    """
    settings = load_settings()
    if settings.mlflow_auth_string is None:
        raise ConfigError("CUPOLA_MLFLOW_AUTH_STRING is not set. Write user:password into it.")
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"  # the guard looks at Host, by one list for all servers

    from mlflow.server.fastapi_app import app

    return Guard(
        app,
        hosts=settings.allowed_hosts,
        credential=settings.mlflow_auth_string.get_secret_value(),
        realm="Cupola: MLflow",
        unasked={"/health"},
    )
