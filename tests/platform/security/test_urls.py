"""URLs are shown without secrets."""

import pytest

from cupola_platform.aliases import fault
from cupola_platform.errors import ConfigError
from cupola_platform.security.urls import shown


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("postgresql+psycopg://me:hush@db:5432/cupola", "postgresql+psycopg://db:5432/cupola"),
        ("postgresql+psycopg://me:hu@sh@db/cupola", "postgresql+psycopg://db/cupola"),
        ("postgresql+psycopg://me:hu/sh@db/cupola", "postgresql+psycopg://db/cupola"),
        ("postgresql+psycopg://db/cupola?user=me&password=hush&sslmode=on", "postgresql+psycopg://db/cupola?user=me&password=***&sslmode=on"),
        ("https://s3.example/b/k?X-Amz-Signature=ab12&X-Amz-Date=1", "https://s3.example/b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://token@mlflow.example/api", "https://mlflow.example/api"),
        ('Failed to connect to proxy URL: "http://me:hush@proxy:3128".', 'Failed to connect to proxy URL: "http://proxy:3128".'),
        ("API request to http://a:b@one/x failed, then http://c:d@two/y", "API request to http://one/x failed, then http://two/y"),
        ("http://127.0.0.1:5000/users/me@home", "http://127.0.0.1:5000/users/me@home"),
        ("s3://bucket/of/me@home.txt", "s3://bucket/of/me@home.txt"),
        ("sqlite:////srv/me@home/registry.db", "sqlite:////srv/me@home/registry.db"),
        ("mail me@home about key=5", "mail me@home about key=5"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_user_password_and_keys(given: str, seen: str) -> None:
    assert shown(given) == seen
    assert str(ConfigError(f"url={given!r} is wrong.")) == f"url={seen!r} is wrong."


@pytest.mark.parametrize("name", ["abcdef", "deadbeef", "f00dcafe1234", "c0ffee"])
def test_an_alias_that_looks_like_an_id_is_refused(name: str) -> None:
    assert fault(name) == (
        f"Alias {name!r} looks like an id (6 or more of 0-9 and a-f). Add another letter, as in {name}-model."
    )


@pytest.mark.parametrize("name", ["champion", "face", "decade-2", "abcdeg", "v1.0"])
def test_other_aliases_are_valid(name: str) -> None:
    assert fault(name) is None
