"""Entry point of the ``fedpath`` command: the command tree, and errors as one line and a remedy."""

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

from fedpath.cli import client, cohort, encoders, explain, models, provision, server, slides
from fedpath.cli.demo.command import demo_command
from fedpath.cli.run import command as run
from fedpath.cli.simulate.command import simulate_command
from fedpath.cli.train.command import train_command
from fedpath.core.errors import FedpathError

app = typer.Typer(
    name="fedpath",
    help="Train slide-level pathology models across hospitals; slides and patients stay where they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(server.app, name="server")
app.add_typer(run.app, name="run")
app.add_typer(client.app, name="client")
app.add_typer(slides.app, name="slides")
app.add_typer(cohort.app, name="cohort")
app.add_typer(models.app, name="models")
app.add_typer(encoders.app, name="encoders")
app.add_typer(explain.app, name="explain")
app.command("provision")(provision.provision_command)
app.command("train")(train_command)
app.command("simulate")(simulate_command)
app.command("demo")(demo_command)

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
    try:
        app()
    except FedpathError as error:
        if os.environ.get(_DEBUG):
            raise
        _end(error.message, error.remedy, error.exit_code)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        sys.exit(130)
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


def _end(message: str, remedy: str, code: int) -> NoReturn:
    print(f"error: {message}\nremedy: {remedy}", file=sys.stderr)
    sys.exit(code)
