"""What of the charts is made from something else: their READMEs, and the rules and dashboards they carry.

    python helm/generate.py            # write what has changed
    python helm/generate.py --check    # exit code 1 where something has

A chart cannot read files outside itself, so it carries copies of `deploy/prometheus/rules` and `deploy/grafana`. Its
README has a line for each value, from the comments in values.yaml: `# -- …` above a key, and the `#` lines that go on.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
HELM, DEPLOY = ROOT / "helm", ROOT / "deploy"
CARRIES = {
    "fedpath-server": {"rules": ["both.yml", "coordinator.yml"], "dashboards": ["coordinator.json"]},
    "fedpath-site": {"rules": ["both.yml", "site.yml"], "dashboards": ["site.json"]},
}
"""By chart and folder of it: which files it carries."""
_SOURCES = {"rules": DEPLOY / "prometheus" / "rules", "dashboards": DEPLOY / "grafana"}

_INSTALL = {
    "fedpath-server": """\
helm install lung helm/fedpath-server --namespace fedpath \\
  --set-file federation=federation.toml \\
  --set-file siteKeys.A=credentials/server/sites/A.pub \\
  --set-file siteKeys.B=credentials/server/sites/B.pub \\
  --set tls.existingSecret=fedpath-server-tls \\
  --set image.repository=registry.example.org/fedpath-server""",
    "fedpath-site": """\
helm install lung helm/fedpath-site --namespace fedpath \\
  --set-file site=site.toml \\
  --set kit.existingSecret=fedpath-kit \\
  --set data.tables.existingSecret=fedpath-tables \\
  --set 'networkPolicy.coordinator.cidrs={203.0.113.7/32}' \\
  --set image.repository=registry.example.org/fedpath-site""",
}


@dataclass(frozen=True, slots=True)
class Value:
    """A value that an installer may set."""

    key: str
    default: str
    says: str


def values_of(chart: str) -> list[Value]:
    """Read a chart's values with their comments.

    Raises:
        ValueError: naming a value without a comment.
    """
    text = (HELM / chart / "values.yaml").read_text()
    lines = text.splitlines()
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    return list(_values(node, "", lines))


def _values(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[Value]:
    for name, value in node.value:
        key = f"{path}{name.value}"
        says = _comment(lines, name.start_mark.line)
        if says is not None:
            yield Value(key, _default(value), says)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _values(value, f"{key}.", lines)
        else:
            raise ValueError(f"{key}: no comment in values.yaml")


def _comment(lines: list[str], at: int) -> str | None:
    """Return the comment that ends above a line; None where there is none or it is not one of a value."""
    words: list[str] = []
    while at > 0 and (line := lines[at - 1].strip()).startswith("#"):
        at -= 1
        if line.startswith("# --"):
            return " ".join([line.removeprefix("# --").strip(), *words])
        words.insert(0, line.removeprefix("#").strip())
    return None


def _default(node: yaml.Node) -> str:
    return f"`{json.dumps(yaml.safe_load(yaml.serialize(node)))}`"


def readme(chart: str) -> str:
    """Return a chart's README."""
    about = yaml.safe_load((HELM / chart / "Chart.yaml").read_text())
    rows = [f"| `{value.key}` | {value.default} | {value.says} |" for value in values_of(chart)]
    return "\n".join(
        [
            f"# {chart}",
            "",
            f"{about['description']} Made by `python helm/generate.py`.",
            "",
            "```bash",
            _INSTALL[chart],
            "```",
            "",
            "How to install it, and all that comes later: [docs/kubernetes.md](../../docs/kubernetes.md).",
            f"Needs Kubernetes {about['kubeVersion'].removesuffix('-0')} and Helm ≥ 3.17. Unknown values are errors.",
            "",
            "| value | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def made() -> dict[Path, str]:
    """Return what should be there, by path; nothing else may be in the folders of copies."""
    files = {HELM / chart / "README.md": readme(chart) for chart in CARRIES}
    for chart, folders in CARRIES.items():
        for folder, names in folders.items():
            for name in names:
                files[HELM / chart / "files" / folder / name] = (_SOURCES[folder] / name).read_text()
    return files


def differing() -> list[Path]:
    """Return the files that are missing, differ, or should not be there."""
    files = made()
    there = {path for chart in CARRIES for path in (HELM / chart / "files").rglob("*") if path.is_file()}
    wrong = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    return sorted([*wrong, *(there - files.keys())])


def main() -> int:
    """Write what differs, or only name it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where something differs")
    check = parser.parse_args().check
    files = made()
    found = differing()
    for path in found:
        print(f"{path.relative_to(ROOT)}: {'is not current' if check else 'written' if path in files else 'removed'}")
        if check:
            continue
        if path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
        else:
            path.unlink()
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
