"""A stage's lease remembers the job that runs the stage on a cluster, however the command that holds it ends."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cupola_flows.execution.leasing import leased
from cupola_platform.errors import ServiceError
from cupola_platform.launch.handle import Handle
from cupola_platform.registry import Registry

JOB = Handle(cluster="h100", id="17")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(f"sqlite:///{tmp_path / 'registry.db'}")) as opened:
        yield opened


@pytest.mark.parametrize("error", [ServiceError("the engine is silent"), KeyboardInterrupt()])
def test_a_job_stays_known_when_its_command_ends(registry: Registry, error: BaseException) -> None:
    def run() -> None:
        with leased(registry, "f", "sft") as lease:
            lease.note(JOB)
            raise error

    with pytest.raises(type(error)):
        run()
    with leased(registry, "f", "sft") as lease:
        assert lease.job == JOB


def test_a_job_that_has_ended_is_forgotten(registry: Registry) -> None:
    with leased(registry, "f", "sft") as lease:
        lease.note(JOB)
        lease.job = None
    assert registry.leases.of("f") is None
    with leased(registry, "f", "sft") as lease:
        assert lease.job is None
