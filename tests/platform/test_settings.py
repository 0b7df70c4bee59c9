from pathlib import Path

import pytest

from cupola_platform.clusters import KubernetesCluster, SlurmCluster, seconds_of
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
        ("zzz = 1", r"unknown key 'zzz'. Known: allowed_hosts, cache_size, clusters"),
        ('store_url = "gs://b"', r"cupola.toml: store_url='gs://b' is not an S3 URL. Write s3://bucket/prefix"),
        ('store_url = "s3://"', r"has no bucket"),
        ('registry_url = "mysql://h/d"', r"must begin with postgresql\+psycopg:// or sqlite:///"),
        ("max_processes = 0", r"cupola.toml: max_processes=0 should be greater than or equal to 1\."),
        ("clusters = 3", r"cupola.toml: clusters=3 should be a table"),
        ("allowed_hosts = 3", r"cupola.toml: allowed_hosts=3 should be a list"),
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


A = "[clusters.a]\n"
SLURM = f'{A}launcher = "slurm"\nranks_per_node = 1\n'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (SLURM + 'partiton = "x"', "unknown key 'clusters.a.partiton' for launcher slurm. Did you mean 'partition'?"),
        (A + "ranks_per_node = 1", "clusters.a has no launcher. Add launcher = NAME, one of local, slurm, kubernetes."),
        (A + 'launcher = "slrm"', "clusters.a.launcher='slrm' does not exist. Did you mean 'slurm'?"),
        (SLURM + "gpus_per_node = 8", "clusters.a has gpus_per_node = 8 and ranks_per_node = 1. Give one of them"),
        (A + 'launcher = "local"', "clusters.a has gpus_per_node = 0 and ranks_per_node = none. Give one of them"),
        (SLURM + 'nodes = "x"', "clusters.a.nodes='x' should be a valid integer"),
        (SLURM + "partition = 3", "clusters.a.partition=3 should be a valid string."),
        (SLURM + 'partition = "a b"', "clusters.a.partition='a b' should be a word of letters, digits and ._,+:/@-."),
        (SLURM + f'partition = "{"x" * 3000} "', f"clusters.a.partition='{'x' * 99}... should be a word"),
        (SLURM.replace("clusters.a", "clusters.A"), "clusters.A should be a name of at most 63 lower-case letters"),
        (SLURM + "nodes = true", "clusters.a.nodes=True should be a valid integer"),
        (SLURM + 'shared = "no"', "clusters.a.shared='no' should be a valid boolean"),
        (SLURM + f"nodes = {10**30}", "clusters.a.nodes=1000000000000000000000000000000 should be less than or equal"),
        (SLURM + 'setup = ["a\\u0000b"]', "clusters.a.setup.0 should be text without NUL"),
        (SLURM + 'environment = {A = "a\\u0000b"}', "clusters.a.environment.A should be text without NUL"),
        (SLURM + 'python = ""', "clusters.a.python='' should be the path of a Python."),
        (SLURM + 'time_limit = "1 day"', "time_limit='1 day' should be minutes, hours:minutes:seconds or days-hours"),
        (SLURM + 'time_limit = "0:02:30"', "time_limit = '0:02:30', 150 s, of which save_ahead takes 180 s. Give jobs"),
        (SLURM + 'sbatch = {array = "0-3"}', "sets sbatch.array, which is Cupola's own (a stage is one job). Leave it"),
        (SLURM + 'sbatch = {partition = "gpu"}', "sets sbatch.partition, which is Cupola's own (set partition). Leave"),
        (A + 'launcher = "kubernetes"\nranks_per_node = 1', "clusters.a.image is missing. Add it."),
        ("[clusters]\na = 3", "clusters.a=3 should be a table."),
        (SLURM + '"a\\nb" = 3', r"unknown key 'clusters.a.a\nb'"),
    ],
)
def test_a_bad_cluster_is_refused_in_one_line(toml: str, message: str) -> None:
    Path("cupola.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("0", 0),
        ("1440", 86400),
        ("90:30", 5430),
        ("1:00:00", 3600),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-2:3:4", 93784),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(limit: str, seconds: int) -> None:
    Path("cupola.toml").write_text(SLURM + f'time_limit = "{limit}"')
    cluster = load_settings().clusters["a"]
    assert isinstance(cluster, SlurmCluster)
    assert cluster.time_limit == limit
    assert seconds_of(limit) == seconds


def test_a_node_label_may_have_no_value() -> None:
    labels = '{"node-role.kubernetes.io/worker" = ""}'
    image = 'launcher = "kubernetes"\nranks_per_node = 1\nimage = "a:1"\nvolume = "v"'
    Path("cupola.toml").write_text(f"{A}{image}\nnode_selector = {labels}")
    cluster = load_settings().clusters["a"]
    assert isinstance(cluster, KubernetesCluster)
    assert cluster.node_selector == {"node-role.kubernetes.io/worker": ""}


@pytest.mark.parametrize(
    "toml",
    [
        SLURM + 'setup = "export TOKEN=geheim"',
        SLURM + 'environment = ["TOKEN=geheim"]',
        SLURM + '[clusters.a.environment]\n"TO KEN" = "geheim"',
        SLURM + 'partiton = "geheim"',
        SLURM + 'gpus_per_node = 1\nenvironment = {TOKEN = "geheim"}',
        'prefect_api_auth_string = ["cupola:geheim"]',
        'registry_url = "postgresql+psycopg//user:geheim@host/database"',
        'registry_url = "mysql://user:geheim@host/database"',
    ],
)
def test_a_refusal_shows_no_secret(toml: str) -> None:
    Path("cupola.toml").write_text(toml)
    with pytest.raises(ConfigError, match=r"^cupola\.toml") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "CUPOLA_CLUSTERS is not JSON. Correct it, or use cupola.toml."),
        ('{"a": {"launcher": "slurm", "ranks": 1}}', "CUPOLA_CLUSTERS has an unknown key 'a.ranks' for launcher slurm"),
        ('{"a": {"launcher": "slurm", "ranks_per_node": "x"}}', "CUPOLA_CLUSTERS: a.ranks_per_node='x' should be"),
    ],
)
def test_clusters_in_a_bad_variable_are_refused_in_one_line(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_CLUSTERS", value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(message)
