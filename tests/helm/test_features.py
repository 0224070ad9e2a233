"""What single values of the charts do: who may talk to whom, what is watched, where things come from."""

import json
import tomllib

import pytest
import yaml
from charts import CHARTS, HELM_FOLDER, Object, containers, helm, of_kind, pods, render

ROOT = HELM_FOLDER.parent

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
