"""The charts, rendered by the real helm, and their pods as far as they can be had without a cluster."""

import base64
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HELM_FOLDER = Path(__file__).parents[1] / "helm"
CHARTS = ("fedpath-server", "fedpath-site")
CI = [(chart, path.name) for chart in CHARTS for path in sorted((HELM_FOLDER / chart / "ci").glob("*-values.yaml"))]
"""Every chart with every file of values it is tested with."""
RELEASE, NAMESPACE = "lung", "fedpath"

Object = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run helm; the caller looks at what came of it."""
    # Not another one that may be on the path.
    program = Path(sysconfig.get_path("scripts")) / "helm"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def template(chart: str, values: str, *further: str | Path) -> subprocess.CompletedProcess[str]:
    """Render a chart with one of its ci files and further arguments."""
    folder = HELM_FOLDER / chart
    return helm("template", RELEASE, folder, "--namespace", NAMESPACE, "--values", folder / "ci" / values, *further)


def render(chart: str, values: str, *further: str | Path) -> list[Object]:
    """The objects that a chart makes."""
    return list(_render(chart, values, further))


@cache
def _render(chart: str, values: str, further: tuple[str | Path, ...]) -> tuple[Object, ...]:
    done = template(chart, values, *further)
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.safe_load_all(done.stdout) if found is not None)


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    """The objects of a kind."""
    return [found for found in objects if found["kind"] == kind]


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that the objects lead to: its name, and what a pod has (metadata, spec)."""
    for found in objects:
        name = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found
        elif found["kind"] == "Deployment":
            yield name, found["spec"]["template"]
        elif found["kind"] == "RayCluster":
            yield f"{name}, head", found["spec"]["headGroupSpec"]["template"]
            for group in found["spec"]["workerGroupSpecs"]:
                yield f"{name}, {group['groupName']}", group["template"]


def containers(pod: Object) -> list[Object]:
    """All of a pod's containers."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


class PodFiles:
    """The volumes of a pod as folders, and whatever names their paths, ports or hosts, mapped to here.

    Args:
        folder: of the volumes.
        objects: of the chart, for its ConfigMaps.
        pod: whose volumes.
        secrets: by name: what the installer's Secrets hold.
        claims: by name: the folders that stand for claims; others are made.
        here: by text, what it is here: addresses and ports.
    """

    def __init__(
        self,
        folder: Path,
        objects: Sequence[Object],
        pod: Object,
        *,
        secrets: Mapping[str, Mapping[str, bytes]],
        claims: Mapping[str, Path],
        here: Mapping[str, str],
    ) -> None:
        self._folder, self._secrets, self._claims = folder, dict(secrets), claims
        self._maps = {
            found["metadata"]["name"]: {key: text.encode() for key, text in found["data"].items()}
            for found in of_kind(objects, "ConfigMap")
        }
        mounts = [mount for container in containers(pod) for mount in container["volumeMounts"]]
        self._here = {mount["mountPath"]: str(folder / mount["name"]) for mount in mounts} | dict(here)
        # At once, for what something is here may hold what something is there; longer ones first.
        self._there = re.compile("|".join(map(re.escape, sorted(self._here, key=len, reverse=True))))
        self._volumes = pod["spec"]["volumes"]
        self._published = 0
        folder.mkdir(parents=True)
        for volume in self._volumes:
            self._make(volume)

    def mapped(self, text: str) -> str:
        """A text with its paths, hosts and ports as they are here."""
        return self._there.sub(lambda found: self._here[found[0]], text)

    def replace_secret(self, name: str, content: Mapping[str, bytes]) -> None:
        """Let a Secret hold something else: the volumes made of it follow, as a kubelet lets them."""
        self._secrets[name] = content
        for volume in self._volumes:
            if "projected" in volume:
                self._make(volume)

    def _make(self, volume: Object) -> None:
        path = self._folder / volume["name"]
        if "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                files |= self._files(source)
            self._publish(path, files, volume["projected"]["defaultMode"])
        elif "secret" in volume:
            self._publish(path, self._files(volume), volume["secret"]["defaultMode"])
        elif "persistentVolumeClaim" in volume and volume["persistentVolumeClaim"]["claimName"] in self._claims:
            path.symlink_to(self._claims[volume["persistentVolumeClaim"]["claimName"]])
        else:
            path.mkdir()

    def _publish(self, path: Path, files: Mapping[str, bytes], mode: int) -> None:
        """Write files as a kubelet does: in a folder with a date, to which ..data leads, to which the names lead."""
        self._published += 1
        dated, data = path / f"..2026_11_27_08_00_00.{self._published}", path / "..data"
        for name, content in files.items():
            file = dated / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.mapped(content.decode()).encode() if name.endswith(".toml") else content)
            file.chmod(mode)
        before = data.resolve() if data.exists() else None
        (path / "..data_tmp").symlink_to(dated.name)
        (path / "..data_tmp").rename(data)
        if before is not None:
            shutil.rmtree(before)
            return
        for top in {Path(name).parts[0] for name in files}:
            (path / top).symlink_to(Path("..data") / top)

    def _files(self, source: Object) -> dict[str, bytes]:
        if "configMap" in source:
            content: Mapping[str, bytes] = self._maps[source["configMap"]["name"]]
            items = source["configMap"].get("items")
        else:
            secret = source["secret"]
            content, items = self._secrets[secret.get("name") or secret["secretName"]], secret.get("items")
        if items is None:
            return dict(content)
        return {item["path"]: content[item["key"]] for item in items}


def secret_of(folder: Path) -> dict[str, bytes]:
    """What `kubectl create secret generic --from-file=FOLDER` takes, after its way through the API."""
    files = {path.name: base64.b64encode(path.read_bytes()) for path in folder.iterdir() if path.is_file()}
    return {name: base64.b64decode(content) for name, content in files.items()}
