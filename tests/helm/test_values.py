"""A value that no chart knows, or that cannot work, is refused before anything is installed; with what to do."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHARTS, HELM_FOLDER, template

TYPOS = {
    "fedpath-server": [
        "imagee.tag=x",
        "image.digset=x",
        "image.digest=latest",
        "image.pullPolicy=always",
        "tls.certManager.enable=true",
        "service.type=Loadbalancer",
        "service.port=99999",
        "securityContext.runAsUser=0",
        "securityContext.privileged=true",
        "resources.limit.memory=1Gi",
        "resources.limits.memory=lots",
        "tolerations[0].keys=x",
        "monitoring.serviceMonitor.intervall=1m",
        "networkPolicy.ingressCidrs[0]=10.0.0.1",
        "podDisruptionBudget.enabled=yes",
        "siteKeys.A=no key",
        "ray.workers.replica=2",
        "page.token=secret",
        "replicas=2",
    ],
    "fedpath-site": [
        "sites=x",
        "kit.secret=x",
        "gpu.counts=1",
        "gpu.count=0",
        "gpu.count=half",
        "data.slide.existingClaim=x",
        "data.slides.subPath=/absolute",
        "encode.mpp=0",
        "proxy.https=proxy:3128",
        "state.keep=never",
        "networkPolicy.coordinator.cidr=10.0.0.0/8",
        "securityContext.runAsUser=0",
        "runtimeClass=nvidia",
    ],
}


def _schema(chart: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HELM_FOLDER / chart / "values.schema.json").read_text())
    return found


@pytest.mark.parametrize(("chart", "typo"), [(chart, typo) for chart, typos in TYPOS.items() for typo in typos])
def test_typos_are_refused(chart: str, typo: str) -> None:
    done = template(chart, "minimal-values.yaml", "--set", typo)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr, done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_no_object_takes_keys_that_nobody_knows(chart: str) -> None:
    free = {"global", "nodeAffinity", "podAffinity", "podAntiAffinity"}  # Helm's own, and Kubernetes' own

    def look(schema: Any, name: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and name not in free:
                further = schema.get("additionalProperties")
                # None, or a map whose values have a type.
                if not (further is False or (isinstance(further, dict) and further and "properties" not in schema)):
                    yield name
            for key, inner in schema.items():
                yield from look(inner, key)

    assert list(look(_schema(chart), chart)) == []


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_knows_the_values_and_no_others(chart: str) -> None:
    schema = _schema(chart)
    values = yaml.safe_load((HELM_FOLDER / chart / "values.yaml").read_text())

    def compare(schema_: dict[str, Any], value: Any, path: str) -> None:
        if "$ref" in schema_:
            schema_ = schema["$defs"][schema_["$ref"].rpartition("/")[2]]
        # An affinity or resources have no key by default.
        if "properties" in schema_ and value and path not in (".affinity", ".resources"):
            assert schema_["properties"].keys() - {"global"} == value.keys(), path
            for key, inner in schema_["properties"].items():
                if key in value:
                    compare(inner, value[key], f"{path}.{key}")

    compare(schema, values, "")


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_may_be_another_ones_dependency(chart: str) -> None:
    assert template(chart, "minimal-values.yaml", "--set", "global.anything=x").returncode == 0


@pytest.mark.parametrize(
    ("chart", "sets", "says"),
    [
        ("fedpath-server", ["federation="], "--set-file federation=federation.toml"),
        ("fedpath-server", ["federation=[federation"], "federation is no TOML"),
        ("fedpath-server", ["federation=a = 1"], r"\[federation\] is missing"),
        ("fedpath-server", ["tls.existingSecret="], "tls.existingSecret is empty"),
        ("fedpath-server", ["tls.certManager.enabled=true"], "not both"),
        ("fedpath-server", ["page.enabled=true"], "the page needs a token"),
        ("fedpath-server", ["registry.existingSecret=x"], "networkPolicy.registry: say where the database is"),
        ("fedpath-server", ["gateway.enabled=true"], "gateway.name is empty"),
        ("fedpath-server", ["image.repository="], "image.repository"),
        ("fedpath-site", ["site="], "--set-file site=site.toml"),
        ("fedpath-site", ["kit.existingSecret="], "kit.existingSecret is empty"),
        ("fedpath-site", ["networkPolicy.coordinator.cidrs=null"], "networkPolicy.coordinator.cidrs is empty"),
        ("fedpath-site", ["encode.enabled=true"], "data.slides.existingClaim is empty"),
        ("fedpath-site", ["data.tables.existingClaim=x"], "not both"),
    ],
)
def test_what_cannot_work_is_said_with_a_remedy(chart: str, sets: list[str], says: str) -> None:
    done = template(chart, "minimal-values.yaml", *[word for text in sets for word in ("--set", text)])
    assert done.returncode != 0
    assert re.search(says, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("chart", "old", "new", "says"),
    [
        ("fedpath-server", 'listen = "0.0.0.0:9443"\n', "", 'write listen = "0.0.0.0:9443"'),
        ("fedpath-server", '["A", "B"]', '["A", "B", "C"]', "siteKeys has no key of site C"),
        ("fedpath-server", "listen", 'credentials = "x"\nlisten', "take server.credentials out"),
        ("fedpath-server", "listen", 'registry = "postgresql://x:y@z/d"\nlisten', "use registry.existingSecret"),
        ("fedpath-site", 'state = "/var/lib/fedpath"\n', "", 'write state = "/var/lib/fedpath"'),
        ("fedpath-site", "/data/features", "features", 'data.features is "features"'),
        ("fedpath-site", "/data/tables/manifest.csv", "/data/tablets/manifest.csv", "data.manifest is"),
        ("fedpath-site", "[data]", '[slides]\nfolder = "/data/slides"\n[data]', "name the claim that holds the slides"),
    ],
)
def test_files_that_would_fail_in_the_pod_are_refused(
    chart: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    key = "federation" if chart == "fedpath-server" else "site"
    values = yaml.safe_load((HELM_FOLDER / chart / "ci" / "minimal-values.yaml").read_text())
    assert old in values[key]
    (tmp_path / "file.toml").write_text(values[key].replace(old, new, 1))
    done = template(chart, "minimal-values.yaml", "--set-file", f"{key}={tmp_path / 'file.toml'}")
    assert done.returncode != 0
    assert says in done.stderr, done.stderr


def test_readmes_rules_and_dashboards_are_current() -> None:
    spec = importlib.util.spec_from_file_location("charts_generate", HELM_FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = generate  # dataclasses look there
    spec.loader.exec_module(generate)
    assert generate.differing() == [], "python helm/generate.py writes them"


def test_what_both_charts_share_is_the_same() -> None:
    common, other = ((HELM_FOLDER / chart / "templates" / "_common.tpl").read_text() for chart in CHARTS)
    assert common == other
