"""Settings of a machine or team: `CUPOLA_*` in the environment, then `cupola.toml` in the working directory, then
defaults."""

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from cupola_platform.clusters import BY_LAUNCHER, AnyCluster
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_platform.strict import like

FINGERPRINTED = False  # says where things are kept

BUCKET = re.compile(r"s3://[A-Za-z0-9._-]{1,255}(/|$)")
FILE = "cupola.toml"
PREFIX = "CUPOLA_"
SECRET = {"environment", "setup"}
"""Tables and lists of a cluster whose values may be secret."""
WORDS = {
    "Value error, ": "",
    "Input should be": "should be",
    "String should": "should",
    "a valid dictionary or object to extract fields from": "a table",
    "a valid dictionary": "a table",
    "a valid tuple": "a list",
}
"""pydantic's words for a rule, and ours."""


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

    cache_size: float | None = Field(default=None, gt=0)
    """GiB of artifacts fetched from S3 to keep in the workspace's `cache/`; the least recently used go first, but none
    that a process uses. None keeps all."""

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

    clusters: dict[
        Annotated[str, like(r"[a-z][a-z0-9_-]{0,62}", "a name of at most 63 lower-case letters, digits, - and _")],
        AnyCluster,
    ] = Field(default_factory=dict)
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
    except SettingsError as error:  # only a variable that holds a table is parsed
        key = re.findall(r'field "(\w+)"', str(error))
        raise ConfigError(f"{PREFIX}{''.join(key).upper()} is not JSON. Correct it, or use {FILE}.") from None
    except ValidationError as error:
        raise ConfigError(_explain(dict(error.errors()[0]))) from None


def _explain(error: dict[str, Any]) -> str:
    """One line for pydantic's first error: the key, its value unless it may be secret, the rule, the next move."""
    top, *inner = error["loc"]
    known: Iterable[str] = Settings.model_fields
    launcher = ""
    if top == "clusters" and len(inner) > 1 and inner[1] in BY_LAUNCHER:  # pydantic names the member of the union
        launcher = inner.pop(1)
        known = BY_LAUNCHER[launcher].model_fields
    variable = f"{PREFIX}{top.upper()}"
    source = variable if os.environ.get(variable) else FILE
    key = _visible(".".join(map(str, inner if source == variable else [top, *inner])))
    match error["type"]:
        case "extra_forbidden":
            where = f" for launcher {launcher}" if launcher else ""
            return f"{source} has an unknown key '{key}'{where}.{did_you_mean(key.rpartition('.')[2], known)}"
        case "union_tag_not_found":
            return f"{source}: {key} has no launcher. Add launcher = NAME, one of {', '.join(BY_LAUNCHER)}."
        case "union_tag_invalid":
            given = str(error["input"]["launcher"])
            return f"{source}: {key}.launcher={given!r} does not exist.{did_you_mean(given, BY_LAUNCHER)}"
        case "missing":
            return f"{source}: {key} is missing. Add it."
    key = key.removesuffix(".[key]")  # a name that breaks a rule
    said = "".join([f"{source}: " if source == FILE or key else source, key, _shown(error)])
    return f"{said} {_rule(error['msg'])}."


def _shown(error: dict[str, Any]) -> str:
    """`=VALUE`; nothing for a table, and for what may be a secret."""
    value, (top, *inner) = error["input"], error["loc"]
    secret = SecretStr in get_args(Settings.model_fields[top].annotation) or SECRET.intersection(map(str, inner))
    if secret or isinstance(value, dict | list | tuple) or inner[-1:] == ["[key]"]:
        return ""
    if isinstance(value, str) and "@" in value and "://" not in value:  # `shown` finds a password only in a URL
        return ""
    return f"={_short(repr(value))}"


def _visible(key: str) -> str:
    """A key without line ends: TOML allows any character in a quoted one."""
    return _short("".join(each if each.isprintable() else repr(each)[1:-1] for each in key))


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _rule(message: str) -> str:
    """A rule of ours or of pydantic's in the words of someone who writes TOML."""
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    return message
