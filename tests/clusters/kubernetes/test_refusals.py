"""What a cluster, its API server or a kubeconfig refuses is one line, and leaves nothing behind."""

import base64
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.clusters.kubernetes.standin_api import Server, StatusError
from tests.clusters.kubernetes.standin_cluster import Cluster
from tests.clusters.kubernetes.standin_container import set_condition

from cupola_platform.errors import ConfigError, CupolaError, ServiceError
from cupola_platform.launch import handle
from cupola_platform.launch.kubernetes import job
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher

Launch = Callable[..., KubernetesLauncher]
Write = Callable[..., Path]


def refusal(
    launcher: KubernetesLauncher, file: Path, error: type[CupolaError] = ConfigError, processes: int = 1
) -> str:
    """The one line with which a start is refused, after a check that nothing is left of it."""
    with pytest.raises(error) as caught:
        launcher.start(file, processes=processes, log=file.parent / "log")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert handle.read(file.parent) is None
    assert {path.name for path in file.parent.iterdir()} <= {"job.json", "log"}
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        ({}, 5, "The job needs 5 ranks; cluster test runs at most 4 x 1 = 4"),
        ({"namespace": "nowhere"}, 1, "there is no namespace 'nowhere'. Create it (docs/clusters.md), or correct clusters.test.namespace."),
        ({"volume": "other"}, 1, "there is no volume 'other' in the namespace 'train'"),
        ({"secret": "store"}, 1, "there is no secret 'store' in the namespace 'train'"),
        ({"service_account": "me"}, 1, "there is no service account 'me' in the namespace 'train'. Create it (docs/clusters.md), or correct clusters.test.service_account."),
        ({"queue": "team"}, 1, "Cluster test has no Kueue"),
        ({"context": "elsewhere"}, 1, "no credentials for Kubernetes: No such context elsewhere"),
    ],
)  # fmt: skip
def test_what_a_cluster_lacks_is_named(
    launcher: Launch, job_file: Write, cluster: Cluster, changes: dict[str, Any], processes: int, says: str
) -> None:
    assert says in refusal(launcher(**changes), job_file(), processes=processes)
    assert not cluster.all("trainjobs")
    assert not cluster.all("trainingruntimes")


def test_a_claim_for_one_node_and_a_missing_queue_are_named(
    launcher: Launch, job_file: Write, cluster: Cluster
) -> None:
    cluster.apis["kueue.x-k8s.io/v1beta2"] = ["workloads", "localqueues"]
    assert "there is no queue 'team'" in refusal(launcher(queue="team"), job_file("a"))
    cluster.objects["persistentvolumeclaims", "train", "workspace"]["spec"]["accessModes"] = ["ReadWriteOnce"]
    assert "several nodes cannot write to the claim 'workspace'" in refusal(launcher(), job_file("b"))
    launcher(nodes=1).check(1)


def test_a_cluster_without_an_engine_is_named(launcher: Launch, job_file: Write, cluster: Cluster) -> None:
    cluster.apis.clear()
    says = refusal(launcher(), job_file())
    assert says.startswith("Cluster test has neither Kubeflow Trainer (trainer.kubeflow.org/v1alpha1) nor JobSet")


def test_credentials_that_are_not_accepted(launcher: Launch, job_file: Write, server: Server) -> None:
    server.tokens = {"another"}
    assert (
        refusal(launcher(), job_file())
        == "Cluster test: the API server does not accept your credentials (401). Log in again."
    )


@pytest.mark.parametrize("plural", ["trainjobs", "trainingruntimes"])
def test_what_this_user_may_not_create(
    launcher: Launch, job_file: Write, server: Server, cluster: Cluster, plural: str
) -> None:
    server.forbidden.add(("POST", plural))
    says = refusal(launcher(), job_file())
    assert says.startswith(
        f'Cluster test: the API server forbids it: {plural} is forbidden: User "jo" cannot create resource'
    )
    assert not cluster.all("trainingruntimes")


def test_what_this_user_may_not_see_is_not_checked(launcher: Launch, server: Server) -> None:
    server.forbidden |= {("GET", plural) for plural in ("namespaces", "persistentvolumeclaims", "secrets", "nodes")}
    launcher(secret="anything").check(1)
    with pytest.raises(ConfigError, match='nodes is forbidden: User "jo" cannot get resource "nodes"'):
        launcher().capacity()


def test_a_name_that_is_taken(
    launcher: Launch, job_file: Write, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupola_platform.launch.kubernetes.manifests.new_name", lambda _: "cupola-taken")
    set_condition(
        cluster.add("trainjobs", "cupola-taken", "train", spec={"runtimeRef": {"name": "cupola-taken"}}), "Complete"
    )
    cluster.add("trainingruntimes", "cupola-taken", "train", spec={"template": {"spec": {}}})
    says = refusal(launcher(), job_file())
    assert says == 'Cluster test: the API server refuses: trainingruntimes "cupola-taken" already exists.'
    assert len(cluster.all("trainjobs")) == len(cluster.all("trainingruntimes")) == 1


def test_a_server_that_is_gone_or_silent(
    launcher: Launch, job_file: Write, server: Server, kubeconfig: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop()
    says = refusal(launcher(), job_file("a"), ServiceError)
    assert says.startswith(f"Cluster test: the API server at {server.url} does not answer")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        kubeconfig(url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr("cupola_platform.launch.kubernetes.api.TIMEOUT", 0.5)
        assert "does not answer" in refusal(launcher(), job_file("b"), ServiceError)


def test_a_server_that_is_not_kubernetes(launcher: Launch, job_file: Write, server: Server) -> None:
    server.pages = True
    says = refusal(launcher(), job_file())
    assert says.startswith(
        "Cluster test: what answers GET /apis/trainer.kubeflow.org/v1alpha1 is no Kubernetes API server."
    )


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_stays_busy(launcher: Launch, job_file: Write, server: Server, code: int) -> None:
    server.faults = [StatusError(code, "slow down", Retry_After="5") for _ in range(50)]
    says = refusal(launcher(), job_file(), ServiceError)
    assert says == f"Cluster test: the API server answers {code}: slow down."


@pytest.mark.parametrize("text", ["", "{", "- a", "apiVersion: v1", "current-context: x\ncontexts: [{name: x}]"])
def test_a_kubeconfig_that_is_none(
    launcher: Launch, job_file: Write, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    says = refusal(launcher(), job_file())
    assert says.startswith("Cluster test: no credentials for Kubernetes: ")


def test_unpacked_certificates_are_removed(
    launcher: Launch, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = Path(os.environ["KUBECONFIG"])
    config = yaml.safe_load(path.read_text())
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=jo", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    config["users"][0]["user"] |= {
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
    }
    path.write_text(yaml.safe_dump(config))
    launcher().check(1)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": "registry.example.org/missing:1"}, "the image registry.example.org/missing:1 cannot be pulled: ImagePullBackOff: Back-off pulling"),
        ({"secret": "gone"}, 'the container cannot start: CreateContainerConfigError: secret "gone" not found'),
    ],
)  # fmt: skip
def test_pods_that_can_never_start_end_the_job(
    launcher: Launch, job_file: Write, server: Server, cluster: Cluster, changes: dict[str, Any], says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(job, "HOPELESS_AFTER", 0.5)
    server.forbidden.add(("GET", "secrets"))
    file = job_file()
    running = launcher(**changes).start(file, processes=2, log=file.parent / "log")
    with pytest.raises(ConfigError) as caught:
        running.wait(30)
    assert f"Cluster test: {says}" in str(caught.value)
    assert "The job was removed." in str(caught.value)
    assert not any(cluster.all(plural) for plural in ("trainjobs", "jobsets", "pods"))
    assert launcher().attach(file) is None


def test_a_cluster_that_stays_away_does_not_end_the_job(
    launcher: Launch, job_file: Write, server: Server, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PATIENCE", 1.0)
    cluster.images.clear()
    file = job_file()
    running = launcher().start(file, processes=1, log=file.parent / "log")
    assert running.wait(0.5) is None
    server.stop()
    with pytest.raises(ServiceError, match=r"does not answer: .* The job goes on\.$"):
        running.wait(30)
    server.start()
    assert launcher().attach(file) is not None
