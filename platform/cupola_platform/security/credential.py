"""The credential of the servers that `cupola up` starts: `user:password` in a file that only its owner can read."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

FILE = "credential"
USER = "cupola"
VARIABLES = frozenset(
    {
        "CUPOLA_CONSOLE_PASSWORD",
        "CUPOLA_MLFLOW_AUTH_STRING",
        "CUPOLA_PREFECT_API_AUTH_STRING",
        "MLFLOW_TRACKING_PASSWORD",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_SERVER_API_AUTH_STRING",
    }
)
"""Environment variables that hold a server's credential."""


def generate() -> SecretStr:
    """A new `cupola:PASSWORD`, with 192 random bits from the operating system."""
    return SecretStr(f"{USER}:{secrets.token_urlsafe(24)}")


def keep(home: Path, credential: SecretStr) -> None:
    """Store the workspace's credential. The file is never readable by others, not even briefly."""
    path = home / FILE
    made = path.with_name(f"{FILE}.{os.getpid()}")
    made.unlink(missing_ok=True)
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{credential.get_secret_value()}\n")
    made.replace(path)


def read(home: Path) -> SecretStr | None:
    """The workspace's credential; None if no server was started there."""
    try:
        text = (home / FILE).read_text().strip()
    except OSError:
        return None
    return SecretStr(text) if text else None


def remove(home: Path) -> None:
    (home / FILE).unlink(missing_ok=True)


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for processes that need none of our servers, such as training jobs."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}


def password(credential: SecretStr) -> str:
    """The part after the user name."""
    return credential.get_secret_value().partition(":")[2]
