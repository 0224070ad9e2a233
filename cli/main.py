"""Entry point of the ``fedpath`` command: the command tree, and errors as one line and a remedy.

The tree is grouped by who needs what. What takes long to import is imported inside the commands: help and completion
are there at once.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, NoReturn

import click
import typer
from typer.core import TyperGroup

from fedpath.cli import client, cohort, encoders, explain, models, output, provision, recipes, server, slides
from fedpath.cli.demo import command as demo
from fedpath.cli.examples import examples
from fedpath.cli.init import command as init
from fedpath.cli.run import command as run
from fedpath.cli.simulate import command as simulate
from fedpath.cli.train import command as train
from fedpath.core.errors import FedpathError, StoppedError

PANELS = {
    "Getting started": ("demo", "init", "recipes", "simulate"),
    "The coordinator": ("provision", "server", "run"),
    "A hospital": ("client",),
    "Slides and cohorts": ("slides", "encoders", "cohort"),
    "Models": ("models", "train", "explain"),
}
"""Who needs which commands, in the order of the help."""


class _Tree(TyperGroup):
    """The root: its commands in the order of ``PANELS``, and Ctrl-C as an error like others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as the help shows them."""
        ordered = [name for names in PANELS.values() for name in names]
        return ordered + [name for name in self.commands if name not in ordered]

    def invoke(self, ctx: click.Context) -> Any:
        """Carry out a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError from None


app = typer.Typer(
    name="fedpath",
    cls=_Tree,
    help="Train slide-level pathology models across hospitals; slides and patients stay where they are.",
    epilog=examples(
        "fedpath demo",
        "fedpath init --role coordinator",
        "fedpath server start --config federation.toml --dir coordinator",
        "fedpath client join --site A --kit kit-A --config site.toml",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_GROUPS = {
    "recipes": recipes.app,
    "server": server.app,
    "run": run.app,
    "client": client.app,
    "slides": slides.app,
    "encoders": encoders.app,
    "cohort": cohort.app,
    "models": models.app,
    "explain": explain.app,
}
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo.demo_command, demo.EXAMPLES),
    "init": (init.init_command, init.EXAMPLES),
    "simulate": (simulate.simulate_command, simulate.EXAMPLES),
    "provision": (provision.provision_command, provision.EXAMPLES),
    "train": (train.train_command, train.EXAMPLES),
}
for _panel, _names in PANELS.items():
    for _name in _names:
        if _name in _GROUPS:
            app.add_typer(_GROUPS[_name], name=_name, rich_help_panel=_panel)
        else:
            _function, _examples = _COMMANDS[_name]
            app.command(_name, rich_help_panel=_panel, epilog=_examples)(_function)

_DEBUG = "FEDPATH_DEBUG"
_EXTRAS = {
    **dict.fromkeys(("cv2", "openslide", "tifffile", "imagecodecs", "simplejpeg"), "client"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    "tensorboard": "track",
    "ray": "ray",
}
"""Which extra of the distribution brings a package that the base does without."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(f"fedpath {installed('fedpath')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar=_DEBUG)] = False,
    # Eager: answered before a missing command is noticed.
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    os.environ[_DEBUG] = "1" if debug else ""


def main() -> None:
    """Run the command line; exit with the error's own code."""
    as_json = output.wanted(sys.argv[1:])
    with output.reserved() if as_json else nullcontext():
        try:
            _run(as_json)
        except FedpathError as error:
            if os.environ.get(_DEBUG):
                raise
            _end(error.message, error.remedy, error.exit_code)
        except BrokenPipeError:  # the reader of our output went away (`fedpath ... | head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except ModuleNotFoundError as error:  # an installation without the extra this command needs
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None or os.environ.get(_DEBUG):
                raise
            _end(f"this command needs {error.name}, which is not installed", f"pip install 'fedpath[{extra}]'", 2)
        except OSError as error:  # a folder that cannot be written to, a full disk
            if os.environ.get(_DEBUG):
                raise
            where = f"{error.filename}: " if error.filename else ""
            remedy = "check that path, its rights and the free space on its disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = "make room on that disk and give the same command again: what was finished is kept"
            _end(f"{where}{error.strerror or error}", remedy, 1)


def _run(as_json: bool) -> None:
    """Parse the command line and carry it out; what is wrong with the line itself is said as the other errors are."""
    if not as_json:
        app()
        return
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "fedpath"
        _end(error.format_message(), f"see {asked} --help", error.exit_code)
    except click.Abort:
        _end("stopped: an answer was needed", "give the answers as options", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, remedy: str, code: int) -> NoReturn:
    output.error(message, remedy, code)
    sys.exit(code)
