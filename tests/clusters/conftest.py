"""Real Slurm clusters, and the command that uses them."""

from collections.abc import Iterator, Mapping

import pytest
from scripts.local_slurm import Slurm
from tests.flows.conftest import cupola, eventually, recipe, texts, undisturbed

__all__ = ["cupola", "eventually", "recipe", "texts", "undisturbed"]


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
