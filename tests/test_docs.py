"""The documentation says what the code does: keys, fields, commands, links, error lines."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from command_tree import check_line, commands, follow, options
from federation import WIDTH, write_bag
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.config.kit import KitConfig
from fedpath.core.config.loading import Section, load_toml
from fedpath.core.exchange.messages import Answer, Metrics, Order
from fedpath.core.models import build_model, save_model

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FILES: dict[str, type[Section]] = {
    "federation.toml": FederationConfig,
    "site.toml": SiteConfig,
    "kit.toml": KitConfig,
}


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    assert [path.name for path in DOCS.glob("*.md") if path.name != "index.md" and f"]({path.name})" not in index] == []


def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name} links {target}"
        assert not anchor or anchor in _anchors(path), f"{page.name} links {target}"


def _anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- configuration ----------------------------------------------------------------------------------------------------


def _tables(schema: type[BaseModel]) -> dict[str, dict[str, list[FieldInfo]]]:
    """Return the keys of a configuration file by the heading they stand under.

    A table within a table has a heading of its own: ``[compute.deepspeed]``; ``[clinical.fields.NAME]`` where the
    user names it, ``[[stage]]`` where there may be several. A heading has the keys of all kinds of its table.
    """
    tables: dict[str, dict[str, list[FieldInfo]]] = {}

    def collect(kinds: list[type[BaseModel]], path: str, heading: str) -> None:
        keys = tables.setdefault(heading, {})
        for kind in kinds:
            for name, field in kind.model_fields.items():
                inner = list(_models_in(field.annotation))
                if not inner:
                    keys.setdefault(name, []).append(field)
                    continue
                below = f"{path}.{name}".removeprefix(".")
                shape = get_origin(get_args(field.annotation)[0] if _is_annotated(field) else field.annotation)
                below += ".NAME" if shape is dict else ""
                collect(inner, below, f"[[{below}]]" if shape is list else f"[{below}]")

    collect([schema], "", "Top level")
    return {heading: keys for heading, keys in tables.items() if keys}


def _is_annotated(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Annotated


def _documented(file: str) -> dict[str, dict[str, list[str]]]:
    """Return the rows of docs/configuration.md: file's headings → key → the other cells."""
    text = (DOCS / "configuration.md").read_text()
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (section,) = (chunk for chunk in part if chunk.startswith(f"{file}\n"))
    found: dict[str, dict[str, list[str]]] = {}
    for chunk in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
        heading = "Top level" if chunk.startswith("Top level") else chunk.partition("\n")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", chunk, flags=re.MULTILINE)
        found[heading] = {key: cells.split(" | ") for key, cells in rows}
    return found


def _default(field: FieldInfo) -> str:
    """Return a field's default as the documentation writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str | Path) else f"`{value}`"


@pytest.mark.parametrize("file", FILES)
def test_every_key_is_documented_with_its_default(file: str) -> None:
    documented = _documented(file)
    tables = _tables(FILES[file])
    assert documented.keys() == tables.keys()
    for heading, fields in tables.items():
        assert documented[heading].keys() == fields.keys(), f"{file} {heading}"
        for key, kinds in fields.items():
            # Where the kinds of a table differ, the page says what decides.
            wanted = {_default(field) for field in kinds}
            assert documented[heading][key][1] in (wanted if len(wanted) == 1 else {"by kind"}), f"{heading} {key}"


def test_example_files_load(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        file = block.partition("\n")[0].removeprefix("#").strip()
        if file in FILES:
            (tmp_path / file).write_text(block)
            load_toml(tmp_path / file, FILES[file])


# --- messages ---------------------------------------------------------------------------------------------------------


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that a type mentions."""
    if get_origin(annotation) in (Annotated, Union, UnionType, dict, list):
        for argument in get_args(annotation):
            yield from _models_in(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


@pytest.mark.parametrize("model", [*_models_in(Order), *_models_in(Answer), Metrics], ids=lambda model: model.__name__)
def test_every_field_of_a_message_is_documented(model: type[BaseModel]) -> None:
    text = (DOCS / "what-leaves.md").read_text()
    waiting, seen = [model], set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        for name, field in current.model_fields.items():
            # An order's or answer's kind is the heading or row it stands in.
            word = field.default if name == "kind" and not field.is_required() else name
            assert re.search(rf"`{word}`|^### {word}$", text, flags=re.MULTILINE), f"{current.__name__}.{name}"
            # The sections of federation.toml that travel are documented in configuration.md.
            inner = set(_models_in(field.annotation)) - seen
            waiting += [found for found in inner if not found.__name__.endswith("Section")]


# --- commands ---------------------------------------------------------------------------------------------------------


def _command_lines(text: str) -> Iterator[str]:
    """Yield the `fedpath …` command lines of fenced blocks, continuation lines joined."""
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL):
        if language not in ("bash", "console", "sh", ""):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            command = line.removeprefix("$ ").strip()
            command = re.sub(r"^\S*bin/(?=fedpath )", "", command)
            if command.startswith("fedpath "):
                yield command


def test_command_lines_run(page: Path) -> None:
    """Every command line of a fenced block has an existing command, existing options, and none missing."""
    for line in _command_lines(page.read_text()):
        words = shlex.split(line, comments=True)[1:]
        while words and words[0] == "--debug":
            words = words[1:]
        check_line(words)


def test_commands_in_the_text_exist(page: Path) -> None:
    """Every `fedpath …` in backticks names an existing command and existing options."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for span in re.findall(r"`(fedpath [a-z][^`]*|fedpath --[^`]*)`", text):
        words = [word for word in span.split()[1:] if word not in ("…", "COMMAND")]
        while words and words[0] == "--debug":
            words = words[1:]
        context, rest = follow(words)
        for word in rest:
            assert not word.startswith("-") or word.partition("=")[0] in options(context), f"{page.name}: {span}"


# --- Python -----------------------------------------------------------------------------------------------------------


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bag(Path("slide.h5"), "slide", np.ones((5, WIDTH)), "noise")
    model = build_model("acmil", width=WIDTH, n_classes=2, seed=0)
    metadata = {"name": "acmil", "width": str(WIDTH), "n_classes": "2", "options": "{}", "labels": '["no", "yes"]'}
    save_model(Path("best.safetensors"), model.state_dict(), metadata)
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    exec(block, names)
    assert names["output"].attention_N.shape == (5,)


# --- errors -----------------------------------------------------------------------------------------------------------


def _said_by_the_code() -> set[str]:
    """Return the texts in the sources, in pieces between the placeholders."""
    sources = [path for room in ("core", "client", "server", "cli") for path in (ROOT / room).rglob("*.py")]
    constants = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    return {node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_error_lines_are_ones_the_code_says() -> None:
    text = (DOCS / "first-federation.md").read_text()
    section = text.partition("## When something goes wrong")[2]
    rows = re.findall(r"^\| (`.+?) \| ", section, flags=re.MULTILINE)
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row)]
    assert len(lines) > 20
    said = _said_by_the_code()
    for line in lines:
        for piece in filter(None, (piece.strip(" :") for piece in line.split("…"))):
            assert any(piece in text for text in said), f"nothing in the code says {piece!r} ({line})"


def test_every_exit_code_is_documented() -> None:
    import fedpath.core.errors as errors

    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for name in ("first-federation.md", "command-line.md"):
        table = (DOCS / name).read_text().partition("## Exit codes")[2].partition("\n## ")[0]
        documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
        assert documented == codes | {0, 130}


def test_the_errors_of_each_exit_code_are_named() -> None:
    import fedpath.core.errors as errors

    table = (DOCS / "command-line.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d+) \| `?(\w*)`? ?\|", table, flags=re.MULTILINE))
    named = {
        str(error.exit_code): error.__name__
        for error in vars(errors).values()
        if isinstance(error, type) and hasattr(error, "exit_code")
    }
    assert rows == named | {"0": ""}


def test_every_command_is_in_the_command_line_page() -> None:
    """The page lists the whole tree, each command with the first line of its help, in the order of the help."""
    text = (DOCS / "command-line.md").read_text().partition("## All commands")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(fedpath [^`]+)` \| (.+) \|$", text, flags=re.MULTILINE)
    wanted = [(one.command_path, (one.command.help or "").partition("\n")[0]) for one in commands()]
    assert listed == wanted


def test_literal_choices_are_documented() -> None:
    rows = _documented("site.toml")["[compute]"]
    for key in ("device", "precision"):
        choices = SiteConfig.model_fields["compute"].annotation.model_fields[key].annotation  # type: ignore[union-attr]
        assert get_origin(choices) is Literal
        assert all(f'`"{choice}"`' in rows[key][0] for choice in get_args(choices))
