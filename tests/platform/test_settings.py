from pathlib import Path

import pytest

from cupola_platform.errors import ConfigError
from cupola_platform.settings import load_settings


def test_without_settings_everything_is_in_the_working_directory(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path / ".cupola"
    assert settings.store_url is None
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/.cupola/mlflow.db"


def test_the_option_overrides_the_environment_and_that_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cupola.toml").write_text('home = "from-file"\nmax_processes = 4\nstore_url = "s3://bucket/team"\n')
    monkeypatch.setenv("CUPOLA_MAX_PROCESSES", "8")
    assert load_settings().home == tmp_path / "from-file"
    assert load_settings().max_processes == 8
    assert load_settings().store_url == "s3://bucket/team"
    assert load_settings(Path("option")).home == tmp_path / "option"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('store_ulr = "s3://b"', r"cupola.toml has an unknown key 'store_ulr'. Did you mean 'store_url'\?"),
        ("zzz = 1", r"unknown key 'zzz'. Known: allowed_hosts, console_password"),
        ('store_url = "gs://b"', r"store_url in cupola.toml='gs://b' is not an S3 URL. Write s3://bucket/prefix"),
        ('store_url = "s3://"', r"has no bucket"),
        ('registry_url = "mysql://h/d"', r"must begin with postgresql\+psycopg:// or sqlite:///"),
        ("max_processes = 0", r"max_processes in cupola.toml=0 Input should be greater than or equal to 1"),
        ("home = ", r"cupola.toml is not TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(toml: str, message: str) -> None:
    Path("cupola.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_MAX_PROCESSES", "many")
    with pytest.raises(ConfigError, match="CUPOLA_MAX_PROCESSES='many'"):
        load_settings()
