"""Every file of ci values gives objects that Kubernetes accepts, that fit together, and that harm nobody."""

import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer
import yaml
from charts import CHARTS, CI, HELM_FOLDER, Object, containers, helm, of_kind, pods, render, template
from kubernetes_validate import utils as kubernetes

from fedpath.cli.main import app
from fedpath.core.config.federation import FederationConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.config.site import SiteConfig

ROOT = HELM_FOLDER.parent
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


# --- who talks to whom ------------------------------------------------------------------------------------------------


def test_a_hospital_lets_nobody_in_and_talks_to_the_coordinator_alone() -> None:
    objects = render("fedpath-site", "minimal-values.yaml")
    assert of_kind(objects, "Service") == []
    (policy,) = of_kind(objects, "NetworkPolicy")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == []
    dns, coordinator = spec["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert coordinator == {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"protocol": "TCP", "port": 443}],
    }
    for _, pod in pods(objects):  # the pod of helm test is held as well
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_a_hospitals_metrics_are_scraped_from_one_namespace_where_that_is_wanted() -> None:
    (policy,) = of_kind(render("fedpath-site", "gpu-slides-values.yaml"), "NetworkPolicy")
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9464}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_the_coordinator_lets_in_its_tls_port_and_what_watches_it() -> None:
    (policy,) = of_kind(render("fedpath-server", "minimal-values.yaml"), "NetworkPolicy")
    everybody = [rule for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert [rule["ports"] for rule in everybody] == [[{"protocol": "TCP", "port": 9443}]]
    (dns,) = policy["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_only_the_tls_port_is_reached_from_outside() -> None:
    for values in ("loadbalancer-postgres-values.yaml", "nothing-optional-values.yaml"):
        for service in of_kind(render("fedpath-server", values), "Service"):
            inside = service["spec"]["type"] == "ClusterIP"
            assert inside or [port["targetPort"] for port in service["spec"]["ports"]] == ["tls"]


def test_only_the_coordinator_reaches_ray() -> None:
    objects = render("fedpath-server", "ingress-ray-values.yaml")
    (deployment,), (cluster,) = of_kind(objects, "Deployment"), of_kind(objects, "RayCluster")
    name = cluster["metadata"]["name"]
    (policy,) = [found for found in of_kind(objects, "NetworkPolicy") if found["metadata"]["name"] == name]
    itself, coordinator, operator = policy["spec"]["ingress"]
    assert itself["from"] == [{"podSelector": {"matchLabels": {"ray.io/cluster": name}}}]
    (peer,) = coordinator["from"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert coordinator["ports"] == [{"protocol": "TCP", "port": 10001}]
    assert operator["from"][0]["namespaceSelector"]["matchLabels"]
    environment = {entry["name"]: entry for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["FEDPATH_RAY_ADDRESS"]["value"] == f"ray://{name}-head-svc:10001"
    # KubeRay cuts names of services at 50 characters.
    assert len(name) <= 50


# --- what is watched --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chart", "values", "rules", "dashboard"),
    [
        ("fedpath-server", "loadbalancer-postgres-values.yaml", ["both", "coordinator"], "coordinator.json"),
        ("fedpath-site", "gpu-slides-values.yaml", ["both", "site"], "site.json"),
    ],
)
def test_rules_and_dashboards_are_those_of_deploy(chart: str, values: str, rules: list[str], dashboard: str) -> None:
    objects = render(chart, values)
    (found,) = of_kind(objects, "PrometheusRule")
    files = [ROOT / "deploy" / "prometheus" / "rules" / f"{name}.yml" for name in rules]
    assert found["spec"]["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    (boards,) = [found for found in of_kind(objects, "ConfigMap") if "grafana_dashboard" in found["metadata"]["labels"]]
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    (name,) = boards["data"]
    assert json.loads(boards["data"][name]) == json.loads((ROOT / "deploy" / "grafana" / dashboard).read_text())


def test_jobs_have_the_names_that_rules_know() -> None:
    (monitor,) = of_kind(render("fedpath-server", "loadbalancer-postgres-values.yaml"), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert {"targetLabel": "job", "replacement": "fedpath-coordinator"} in endpoint["relabelings"]
    (monitor,) = of_kind(render("fedpath-site", "gpu-slides-values.yaml"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "fedpath-site"} in endpoint["relabelings"]
    assert {"targetLabel": "site", "replacement": "A"} in endpoint["relabelings"]


# --- single features --------------------------------------------------------------------------------------------------


def _deployment(chart: str, values: str, *further: str) -> Object:
    (found,) = of_kind(render(chart, values, *further), "Deployment")
    return found


def test_a_digest_goes_before_the_tag() -> None:
    spec = _deployment("fedpath-server", "minimal-values.yaml", "--set", f"image.digest=sha256:{'0' * 64},image.tag=x")
    image = spec["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example.org/fedpath-server@sha256:{'0' * 64}"


def test_new_settings_begin_a_new_pod_and_a_new_chart_alone_does_not() -> None:
    def pod(*further: str) -> Object:
        found: Object = _deployment("fedpath-server", "minimal-values.yaml", *further)["spec"]["template"]
        return found

    first = pod()
    other = pod("--set-string", "siteKeys.A=-----BEGIN PUBLIC KEY----- other")
    assert other["metadata"]["annotations"] != first["metadata"]["annotations"]
    assert "0.1.0" not in json.dumps(first["metadata"])


def test_gpus_and_their_taints_also_where_nothing_trains_yet() -> None:
    objects = render("fedpath-site", "gpu-slides-values.yaml")
    for name, pod in pods(objects):
        keys = {toleration["key"] for toleration in pod["spec"]["tolerations"]}
        assert keys == {"nvidia.com/gpu", "example.org/pathology"}, name
        assert pod["spec"]["runtimeClassName"] == "nvidia", name
    pod = _deployment("fedpath-site", "gpu-slides-values.yaml")["spec"]["template"]
    for container in containers(pod):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
        (slides,) = [mount for mount in container["volumeMounts"] if mount["name"] == "slides"]
        assert slides["readOnly"] is True


def test_the_database_is_named_by_a_secret() -> None:
    pod = _deployment("fedpath-server", "loadbalancer-postgres-values.yaml")["spec"]["template"]
    (entry,) = [entry for entry in pod["spec"]["containers"][0]["env"] if entry["name"] == "FEDPATH_REGISTRY_URL"]
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "fedpath-registry", "key": "url"}}


def test_cert_manager_issues_for_the_host_of_the_address() -> None:
    (certificate,) = of_kind(render("fedpath-server", "cert-manager-gateway-values.yaml"), "Certificate")
    assert certificate["spec"]["dnsNames"] == ["fedpath.example.org"]
    (route,) = of_kind(render("fedpath-server", "cert-manager-gateway-values.yaml"), "TLSRoute")
    assert route["spec"]["hostnames"] == ["fedpath.example.org"]
    volumes = _deployment("fedpath-server", "cert-manager-gateway-values.yaml")["spec"]["template"]["spec"]["volumes"]
    (config,) = [volume for volume in volumes if volume["name"] == "config"]
    assert config["projected"]["sources"][1]["secret"]["name"] == certificate["spec"]["secretName"]


def test_dns_may_be_elsewhere() -> None:
    (policy,) = of_kind(render("fedpath-site", "same-cluster-values.yaml"), "NetworkPolicy")
    dns, _ = policy["spec"]["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}


@pytest.mark.parametrize("chart", CHARTS)
def test_charts_have_the_version_of_fedpath(chart: str) -> None:
    about = yaml.safe_load((HELM_FOLDER / chart / "Chart.yaml").read_text())
    assert about["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_long_names_are_cut() -> None:
    chart = HELM_FOLDER / "fedpath-server"
    done = helm("template", "a" * 53, chart, "--values", chart / "ci" / "loadbalancer-postgres-values.yaml")
    assert done.returncode == 0, done.stderr
    for found in filter(None, yaml.safe_load_all(done.stdout)):
        assert len(found["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in found["metadata"]["labels"].values())
