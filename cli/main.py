"""Entry point of the ``fedpath`` command: the command tree, and errors as one line and a remedy."""

import os
import sys
from typing import Annotated

import typer

from fedpath.cli import client, cohort, models, provision, server, slides, train
from fedpath.cli.demo.command import demo_command
from fedpath.core.errors import FedpathError

app = typer.Typer(
    name="fedpath",
    help="Train slide-level pathology models across hospitals; slides and patients stay where they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(slides.app, name="slides")
app.add_typer(cohort.app, name="cohort")
app.add_typer(models.app, name="models")
app.command("provision")(provision.provision_command)
app.command("train")(train.train_command)
app.command("demo")(demo_command)

_DEBUG = "FEDPATH_DEBUG"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar=_DEBUG)] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Options of every command."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"fedpath {installed('fedpath')}")
        raise typer.Exit
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Run the command line; exit with the error's own code."""
    try:
        app()
    except FedpathError as error:
        if os.environ.get(_DEBUG):
            raise
        print(f"error: {error.message}\nremedy: {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away (`fedpath ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
