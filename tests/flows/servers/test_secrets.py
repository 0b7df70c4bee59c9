"""No command shows a password, whatever setting it is in and whatever fails."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cupola_flows.cli import main
from cupola_platform.registry import Registry
from cupola_platform.tracking.spool import Spool
from cupola_platform.tracking.tracker import Sender

USER, PASSWORD = "somebody", "hush-hush"
PLANTED = f"{USER}:{PASSWORD}@"

REFUSED = {
    "PostgreSQL that is away": ({"CUPOLA_REGISTRY_URL": f"postgresql+psycopg://{PLANTED}127.0.0.1:1/db"}, ["runs"]),
    "a port that is no number": ({"CUPOLA_REGISTRY_URL": f"postgresql+psycopg://{PLANTED}db:port/db"}, ["runs"]),
    "a password with a slash": ({"CUPOLA_REGISTRY_URL": f"postgresql+psycopg://{USER}:{PASSWORD}/x@127.0.0.1:1/db"}, ["runs"]),
    "a password in the query": ({"CUPOLA_REGISTRY_URL": f"postgresql+psycopg://127.0.0.1:1/db?password={PASSWORD}"}, ["runs"]),
    "another database": ({"CUPOLA_REGISTRY_URL": f"mysql://{PLANTED}127.0.0.1/db"}, ["artifacts", "--json"]),
    "MLflow that is no address": ({"CUPOLA_MLFLOW_TRACKING_URI": f"http://{PLANTED}mlflow:port"}, ["doctor"]),
    "an S3 server that is away": (
        {"CUPOLA_STORE_URL": "s3://bucket", "CUPOLA_S3_ENDPOINT_URL": f"http://{PLANTED}127.0.0.1:1"}, ["show",
        "0123abcd"],
    ),
    "an S3 server that is no address": (
        {"CUPOLA_STORE_URL": "s3://bucket", "CUPOLA_S3_ENDPOINT_URL": f"http://{PLANTED}[::"}, ["show", "0123abcd"],
    ),
    "keys in a bucket's name": ({"CUPOLA_STORE_URL": f"s3://{PLANTED}bucket"}, ["show", "0123abcd"]),
    "a store that is no bucket": ({"CUPOLA_STORE_URL": f"https://{PLANTED}bucket"}, ["artifacts"]),
    "a proxy that is away": (
        {"CUPOLA_STORE_URL": "s3://bucket", "HTTPS_PROXY": f"http://{PLANTED}127.0.0.1:1"}, ["show", "0123abcd"],
    ),
    "Prefect that is away": ({"CUPOLA_PREFECT_API_URL": f"http://{PLANTED}127.0.0.1:1/api"}, ["submit", "tiny"]),
    "a recipe's endpoint": ({}, ["run", "RECIPE", "--set", f"stages.write.endpoint.url=http://{PLANTED}127.0.0.1/v1"]),
    "a recipe's long endpoint": ({}, ["run", "RECIPE", "--set", f"stages.write.endpoint.url=http://{USER}:{PASSWORD}{'x' * 90}@h/v1"]),
    "a recipe's bucket": ({}, ["run", "RECIPE", "--set", f"stages.prepare.corpus.sources.lake.url=s3://{PLANTED}bucket"]),
}  # fmt: skip
ANSWERED = {
    "doctor": ["doctor"],
    "doctor in JSON": ["doctor", "--json"],
    "runs": ["runs"],
    "runs in JSON": ["runs", "--json"],
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a command in an environment and returns its exit status and output."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    monkeypatch.setattr("cupola_platform.registry.connection.patiently", lambda act, patience: act())
    monkeypatch.setenv("CUPOLA_HOME", str(tmp_path / "home"))
    recipe = tmp_path / "recipe.yaml"
    prepare = {"corpus": {"sources": {"lake": {"type": "s3", "url": "s3://bucket"}}}}
    write = {
        "kind": "synthesize",
        "endpoint": {"url": "http://h/v1", "model": "m"},
        "make": "prompts",
        "scorer": "none",
    }
    recipe.write_text(yaml.safe_dump({"name": "mine", "stages": {"prepare": prepare, "write": write}}))

    def run(environment: dict[str, str], arguments: list[str]) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["cupola", *(str(recipe) if each == "RECIPE" else each for each in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    return run


@pytest.mark.parametrize("what", REFUSED)
def test_no_error_shows_a_password(said: Any, what: str) -> None:
    status, text = said(*REFUSED[what])
    assert (status, text.count("\n")) == (2, 1), text
    assert text.startswith("cupola: error: ")
    assert PASSWORD not in text
    assert f"{USER}:" not in text


@pytest.mark.parametrize("what", ANSWERED)
def test_no_output_shows_a_password(said: Any, tmp_path: Path, what: str) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'home/registry.db'}")
    run = registry.start_run("mine", "prepare")
    registry.finish_run(run, "failed", error=f"MlflowException: API request to http://{PLANTED}127.0.0.1:1/api failed")
    servers = {
        "CUPOLA_S3_ENDPOINT_URL": f"http://{PLANTED}127.0.0.1:1",
        "CUPOLA_PREFECT_API_URL": f"http://{PLANTED}127.0.0.1:1/api",
        "CUPOLA_MLFLOW_TRACKING_URI": f"http://{PLANTED}127.0.0.1:1",
    }  # fmt: skip
    _, text = said(servers, ANSWERED[what])
    assert "127.0.0.1:1" in text
    assert PASSWORD not in text
    assert USER not in text


def test_the_reason_for_pending_mlflow_data_has_no_password(tmp_path: Path) -> None:
    sender = Sender(f"http://{PLANTED}127.0.0.1:1", Spool(tmp_path))
    sender.spool.open_run("r", "r", None, {}, {})
    reason = sender.flush().reason
    assert reason
    assert "http://127.0.0.1:1/api" in reason
    assert PASSWORD not in reason
