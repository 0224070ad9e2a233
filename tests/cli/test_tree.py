"""What holds for every command: an example that parses, --json, help at once, and nothing lost in it."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from command import fedpath
from command_tree import HEAVY, check_line, commands, contexts, options

from fedpath.cli.examples import HEADING
from fedpath.cli.main import PANELS

ALL = pytest.mark.parametrize("context", [*contexts()], ids=lambda one: one.command_path)


@ALL
def test_every_command_has_examples_that_parse(context: click.Context) -> None:
    heading, *lines = (context.command.epilog or "").split("\n\n")
    assert HEADING in heading
    assert lines
    for line in lines:
        assert line.startswith(context.command_path), line
        check_line(shlex.split(line)[1:])


@ALL
def test_help_shows_the_whole_docstring(context: click.Context) -> None:
    """What stands in square brackets is markup to rich, and would vanish."""
    words = context.command_path.split()[1:]
    shown = re.sub(r"[^\w]", "", fedpath(*words, "--help").out)
    for text in filter(None, (context.command.help, context.command.epilog)):
        for line in text.replace("[bold]", "").replace("[/bold]", "").splitlines():
            assert re.sub(r"[^\w]", "", line) in shown, line


@ALL
def test_summaries_have_one_voice(context: click.Context) -> None:
    """One sentence that says what the command does, beginning with a verb."""
    first = (context.command.help or "").partition("\n")[0]
    assert first.endswith(".")
    assert not re.match(r"(The|A|An|From|Pictures|This) ", first), first
    assert len(first) <= 130


@pytest.mark.parametrize("context", commands(), ids=lambda one: one.command_path)
def test_every_command_has_json(context: click.Context) -> None:
    assert "--json" in options(context)


def test_the_root_lists_all_in_panels() -> None:
    shown = fedpath("--help").out
    assert [shown.index(f"─ {panel} ─") for panel in PANELS] == sorted(shown.index(f"─ {panel} ─") for panel in PANELS)
    for names in PANELS.values():
        assert all(re.search(rf"^│ {name} ", shown, flags=re.MULTILINE) for name in names)


def test_help_is_there_at_once() -> None:
    """No help imports what takes long: counted by modules, since seconds depend on what else the machine does."""
    code = (
        "import contextlib, io, sys\n"
        "from fedpath.cli.main import main\n"
        "for words in map(str.split, sys.stdin):\n"
        "    sys.argv = [*words, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "    assert 'Usage' in out.getvalue(), words\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    lines = "\n".join(one.command_path for one in contexts())
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
