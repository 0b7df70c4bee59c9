from pathlib import Path

import pytest

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ConfigError
from cupola_platform.launch.launcher import is_unshared, make_launcher
from cupola_platform.launch.unshared.launcher import UnsharedLauncher, contract_of
from cupola_platform.settings import Settings
from cupola_platform.unshared.contract import folder_on_nodes, read_contract

CLUSTER = SlurmCluster(launcher="slurm", nodes=2, ranks_per_node=1, shared=False, cache=7)


def test_a_cluster_without_a_shared_folder_needs_a_store(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, clusters={"apart": CLUSTER, "together": CLUSTER.but(shared=True)})
    launcher = make_launcher(settings, "apart")
    assert isinstance(launcher, UnsharedLauncher)
    assert not isinstance(make_launcher(settings, "together"), UnsharedLauncher)
    assert [is_unshared(settings, name) for name in ("apart", "together", "nowhere", None)] == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(
        ConfigError, match=r"Cluster apart has shared = false, .* Set store_url in cupola\.toml\."
    ) as caught:
        launcher.check(2)
    assert "\n" not in str(caught.value)


def test_a_jobs_processes_learn_by_variables_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path / "home", store_url="s3://bucket/top", s3_endpoint_url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"/job is outside the workspace .*/home, .* Use a folder in the workspace\."):
        contract_of(settings, tmp_path / "job")
    contract = contract_of(settings, tmp_path / "home/work/f/job", 7)
    assert contract.section == "jobs/work/f/job"
    assert folder_on_nodes({}) is None
    assert read_contract({}) is None
    variables = {**contract.variables(), "CUPOLA_HOME": "/local"}
    assert folder_on_nodes(variables) == Path("/local/work/f/job")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    there = read_contract()
    assert there is not None
    assert (there.folder, there.section, there.cache_gib) == (Path("/local/work/f/job"), "jobs/work/f/job", 7.0)
    assert there.settings.store_url == "s3://bucket/top"
