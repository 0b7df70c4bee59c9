"""Settings of a machine or team: `CUPOLA_*` in the environment, then `cupola.toml` in the working directory, then
defaults."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cupola_platform.clusters import AnyCluster
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean

FINGERPRINTED = False  # says where things are kept

BUCKET = re.compile(r"s3://[A-Za-z0-9._-]{1,255}(/|$)")
FILE = "cupola.toml"
PREFIX = "CUPOLA_"


class Settings(BaseSettings):
    """Where state is kept, and on which servers. The defaults need only this machine."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        toml_file=FILE,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_ignore_empty=True,
    )

    home: Path = Path(".cupola")
    """The workspace: databases, artifacts, work in progress, logs. Deleting it deletes everything local."""

    store_url: str | None = None
    """`s3://bucket/prefix` for artifacts; None keeps them in the workspace."""

    s3_endpoint_url: str | None = None
    """An S3 server other than AWS, such as `http://127.0.0.1:8333`. Credentials come from AWS's own variables and
    files."""

    s3_region: str | None = None
    """The bucket's region; None leaves it to AWS's own configuration."""

    registry_url: str | None = None
    """`postgresql+psycopg://user:password@host/database`; None uses a SQLite file in the workspace."""

    mlflow_tracking_uri: str | None = None
    """An MLflow server, such as `http://127.0.0.1:5000`; None uses a SQLite file in the workspace."""

    prefect_api_url: str | None = None
    """A Prefect server, such as `http://127.0.0.1:4200/api`; None starts one on this machine when a run needs it."""

    prefect_api_auth_string: SecretStr | None = None
    """`user:password` for the server at `prefect_api_url`: its PREFECT_SERVER_API_AUTH_STRING. None if that server
    needs no credential. Servers that Cupola starts have their own."""

    mlflow_auth_string: SecretStr | None = None
    """`user:password` for the server at `mlflow_tracking_uri`, likewise."""

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names of the servers that run here besides the loopback names, such as `mlflow,cupola.example.org`. Requests
    for any other host are refused."""

    max_processes: int | None = Field(default=None, ge=1)
    """Training processes that this machine may run at once; None for one per core."""

    clusters: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], AnyCluster] = Field(
        default_factory=dict
    )
    """Named places where jobs can run, each a `[clusters.NAME]`."""

    console_password: SecretStr | None = None
    """Password of the console. None uses the one that `cupola up` generates; a console started another way is then open
    to anyone who reaches it."""

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        return (
            tuple(name.strip().lower() for name in names.split(",") if name.strip())
            if isinstance(names, str)
            else names
        )

    @field_validator("store_url")
    @classmethod
    def _is_bucket(cls, url: str | None) -> str | None:
        if url is not None and not url.removeprefix("s3://").strip("/"):
            raise ValueError("has no bucket. Write s3://bucket or s3://bucket/prefix")
        if url is not None and not url.startswith("s3://"):
            raise ValueError(
                "is not an S3 URL. Write s3://bucket/prefix, or leave it out to keep artifacts in the workspace"
            )
        if url is not None and not BUCKET.match(url):
            raise ValueError(
                "must name an S3 bucket of letters, digits, '.', '-' and '_'. Set credentials in AWS's own variables"
            )
        return url

    @field_validator("s3_endpoint_url", "mlflow_tracking_uri", "prefect_api_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        try:
            if url is not None and "://" in url:
                urlsplit(url).port  # noqa: B018 - raises if the port is not a number
        except ValueError:
            raise ValueError("is not an address. Write http://host:port") from None
        return url

    @field_validator("registry_url")
    @classmethod
    def _is_supported(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("postgresql+psycopg://", "sqlite:///")):
            raise ValueError("must begin with postgresql+psycopg:// or sqlite:///")
        return url

    @property
    def registry(self) -> str:
        """The registry's URL, credentials included."""
        return self.registry_url or f"sqlite:///{self.home / 'registry.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow's URI: the server, or the workspace's SQLite file."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(home: Path | None = None) -> Settings:
    """The effective settings; `home` (from `--workspace`) overrides the environment and the file.

    Raises:
        ConfigError: a value is invalid, or `cupola.toml` is not TOML or has an unknown key.
    """
    try:
        return Settings() if home is None else Settings(home=home)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{FILE} is not TOML: {error}. Correct that line.") from None
    except ValidationError as error:
        raise ConfigError(_explain(dict(error.errors()[0]))) from None


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{FILE} has an unknown key {key!r}.{did_you_mean(key, Settings.model_fields)}"
    variable = f"{PREFIX}{key.upper()}"
    where = variable if variable in os.environ else f"{key} in {FILE}"
    return f"{where}={error['input']!r} {error['msg'].removeprefix('Value error, ')}."
