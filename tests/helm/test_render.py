"""Every file of ci values gives objects that Kubernetes accepts, that fit together, and that harm nobody."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer
from charts import CI, HELM_FOLDER, Object, containers, helm, of_kind, pods, render, template
from kubernetes_validate import utils as kubernetes

from fedpath.cli.main import app
from fedpath.core.config.federation import FederationConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.config.site import SiteConfig

VERSIONS = [version for version in kubernetes.all_versions() if int(version.split(".")[1]) >= 27]
CUSTOM = {
    "Certificate": "cert-manager.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "RayCluster": "ray.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "TLSRoute": "gateway.networking.k8s.io/v1alpha2",
}
"""Kinds that are not Kubernetes' own: no schema of them is at hand."""


_schema = cache(kubernetes.schema_contents)  # it reads megabytes for each object


@pytest.fixture(params=CI, ids=lambda case: f"{case[0]}-{case[1].removesuffix('-values.yaml')}")
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def objects(case: tuple[str, str]) -> list[Object]:
    return render(*case)


def test_lint(case: tuple[str, str]) -> None:
    chart, values = case
    done = helm("lint", "--strict", HELM_FOLDER / chart, "--values", HELM_FOLDER / chart / "ci" / values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_version_of_kubernetes_accepts_them(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "schema_contents", _schema)
    assert VERSIONS[0].startswith("1.27")
    for found in objects:
        if found["kind"] in CUSTOM:
            assert found["apiVersion"] == CUSTOM[found["kind"]]
            continue
        for version in VERSIONS:
            kubernetes.validate(found, version, strict=True)


@pytest.mark.parametrize("chart", ["fedpath-server", "fedpath-site"])
def test_an_older_kubernetes_is_refused(chart: str) -> None:
    done = template(chart, "minimal-values.yaml", "--kube-version", "1.26.9")
    assert done.returncode != 0
    assert "incompatible with Kubernetes v1.26.9" in done.stderr
    assert template(chart, "minimal-values.yaml", "--kube-version", "1.27.3-gke.100").returncode == 0


def test_pods_may_do_nothing_they_need_not(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"].get("runAsUser", 1) > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
        for container in containers(pod):
            security = container["securityContext"]
            assert security == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert not [port for port in container.get("ports", []) if "hostPort" in port], name
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name


def test_nobody_gets_rights_in_the_cluster(objects: list[Object]) -> None:
    assert {found["kind"] for found in objects}.isdisjoint({"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"})
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_long_lived_containers_are_probed(objects: list[Object]) -> None:
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "metrics"}
    assert container["livenessProbe"]["grpc"]["port"] == ports["health"]
    assert f"--metrics-port={ports['metrics']}" in container["args"]
    assert f"--health-port={ports['health']}" in container["args"]


def test_labels(objects: list[Object]) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    for found in objects:
        labels = found["metadata"]["labels"]
        standard = ("name", "instance", "version", "part-of", "managed-by")
        assert labels.keys() >= {f"app.kubernetes.io/{word}" for word in standard}, found["metadata"]["name"]
        assert all(isinstance(value, str) for value in labels.values())


def test_selectors_choose_the_pod_and_ports_exist(objects: list[Object]) -> None:
    (deployment,) = of_kind(objects, "Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}

    def chosen(selector: dict[str, str], by: dict[str, str] = labels) -> bool:
        return selector.items() <= by.items()

    assert chosen(deployment["spec"]["selector"]["matchLabels"])
    services = of_kind(objects, "Service")
    for service in services:
        assert chosen(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for found in of_kind(objects, "PodDisruptionBudget"):
        assert chosen(found["spec"]["selector"]["matchLabels"])
    for found in of_kind(objects, "PodMonitor"):
        assert chosen(found["spec"]["selector"]["matchLabels"])
        assert {endpoint["port"] for endpoint in found["spec"]["podMetricsEndpoints"]} <= ports
    for found in of_kind(objects, "ServiceMonitor"):
        wanted = found["spec"]["selector"]["matchLabels"]
        (service,) = [service for service in services if chosen(wanted, service["metadata"]["labels"])]
        assert {endpoint["port"] for endpoint in found["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }


def test_what_is_mounted_is_there(objects: list[Object]) -> None:
    accounts = {found["metadata"]["name"] for found in of_kind(objects, "ServiceAccount")} | {"default"}
    claims = {found["metadata"]["name"] for found in of_kind(objects, "PersistentVolumeClaim")}
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(objects, "ConfigMap")}
    for name, pod in pods(objects):
        assert pod["spec"]["serviceAccountName"] in accounts, name
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= volumes.keys(), name
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts), name
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim.get("readOnly") or claim["claimName"] in claims | {
                "fedpath-runs", "features", "state",
            }, name  # fmt: skip
            for source in volume.get("projected", {}).get("sources", []):
                if "configMap" in source:
                    there = maps[source["configMap"]["name"]]
                    assert {item["key"] for item in source["configMap"]["items"]} <= there.keys(), name


# --- the command line -------------------------------------------------------------------------------------------------


def _commands(objects: list[Object]) -> Iterator[list[str]]:
    """The arguments of every container that runs `fedpath`, as the image's entrypoint does."""
    for _, pod in pods(objects):
        for container in containers(pod):
            if "command" not in container and "args" in container:
                yield container["args"]


def _parse(words: list[str]) -> None:
    """Parse a command line of `fedpath`: an unknown command or flag, a missing one and a wrong value are errors."""
    context, rest = click.Context(typer.main.get_command(app), info_name="fedpath"), list(words)
    while isinstance(context.command, click.Group):
        command = context.command.get_command(context, rest.pop(0))
        assert command is not None, words
        context = click.Context(command, parent=context, info_name=command.name)
    with context.scope():
        context.command.make_context(context.info_name, rest, parent=context.parent)


def test_commands_and_flags_exist(objects: list[Object]) -> None:
    lines = list(_commands(objects))
    assert lines
    for line in lines:
        _parse(line)


@pytest.mark.parametrize("chart", ["fedpath-server", "fedpath-site"])
def test_commands_of_the_notes_exist(chart: str) -> None:
    notes = (HELM_FOLDER / chart / "templates" / "NOTES.txt").read_text()
    lines = re.findall(r" -- fedpath (.+)$", notes, flags=re.MULTILINE)
    assert lines
    for line in lines:
        _parse(line.split())


def test_the_files_are_what_fedpath_reads(objects: list[Object], tmp_path: Path) -> None:
    for found in of_kind(objects, "ConfigMap"):
        for name, model in (("federation.toml", FederationConfig), ("site.toml", SiteConfig)):
            if name in found["data"]:
                (tmp_path / name).write_text(found["data"][name])
                load_toml(tmp_path / name, model)
