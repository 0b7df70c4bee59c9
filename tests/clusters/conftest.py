"""Real Slurm clusters, and the command that uses them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripts.local_slurm import Slurm
from tests.flows.conftest import cupola, eventually, recipe, texts, undisturbed

__all__ = ["cupola", "eventually", "recipe", "texts", "undisturbed"]
WITH_STORE = """
store_url = "{store}"
s3_endpoint_url = "{endpoint}"
[clusters.test]
launcher = "slurm"
nodes = 4
ranks_per_node = 1
interface = "lo"
shared = {shared}
environment = {{CUPOLA_HOME = "{home}"}}
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm cluster of four nodes on this machine."""
    cluster = Slurm(4)
    yield cluster
    cluster.close()


@pytest.fixture
def on_slurm(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """This process's Slurm commands go to the test's cluster."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm.environment


@pytest.fixture
def with_store(cupola: Any, slurm: Slurm, s3: Any, tmp_path: Path) -> Callable[..., Any]:
    """A function that returns the command on a machine whose cupola.toml names the test's cluster and an S3 store."""

    def command(*, shared: bool, home: Path = cupola.workspace) -> Any:
        store = f"s3://{s3.bucket}/{tmp_path.name}"
        text = WITH_STORE.format(store=store, endpoint=s3.endpoint_url, shared=str(shared).lower(), home=home)
        (cupola.workspace.parent / "cupola.toml").write_text(text)
        return replace(cupola, variables=dict(slurm.environment))

    return command
