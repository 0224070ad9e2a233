"""The tree of `fedpath`'s commands, as the real app has it."""

from collections.abc import Iterator

import click
import typer

from fedpath.cli.main import app

HEAVY = (
    *("torch", "numpy", "flwr", "pydantic", "sklearn", "httpx", "uvicorn", "fastapi", "grpc", "cv2", "openslide"),
    *("matplotlib", "h5py", "numba", "sqlalchemy", "ray", "jinja2", "cryptography", "prometheus_client"),
)
"""Packages that take long to import, or drag others along that do."""


def root() -> click.Context:
    """The context of `fedpath` itself."""
    return click.Context(typer.main.get_command(app), info_name="fedpath", help_option_names=["-h", "--help"])


def contexts(above: click.Context | None = None) -> Iterator[click.Context]:
    """Yield every group and command below a group, and the group itself."""
    above = above or root()
    yield above
    if isinstance(above.command, click.Group):
        for name in above.command.list_commands(above):
            command = above.command.get_command(above, name)
            assert command is not None, name
            yield from contexts(click.Context(command, parent=above, info_name=name))


def commands() -> list[click.Context]:
    """The commands proper: what is no group, or does something without a subcommand."""
    return [one for one in contexts() if not isinstance(one.command, click.Group) or one.command.invoke_without_command]


def follow(words: list[str]) -> tuple[click.Context, list[str]]:
    """Walk the tree along ``words``; return the command's context and what remains."""
    context = root()
    while words and isinstance(context.command, click.Group) and not words[0].startswith("-"):
        command = context.command.get_command(context, words[0])
        assert command is not None, f"no command '{words[0]}' under '{context.command_path}'"
        context, words = click.Context(command, parent=context, info_name=words[0]), words[1:]
    return context, words


def options(context: click.Context) -> set[str]:
    """The options that a command knows."""
    parameters = context.command.get_params(context)
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


def check_line(words: list[str]) -> None:
    """Check that a command line, without `fedpath`, has an existing command and options, and that none is missing."""
    context, arguments = follow(words)
    if arguments and arguments[-1] in ("--help", "--version", "--install-completion", "--show-completion"):
        assert arguments[-1] in options(context), words
        return
    if isinstance(context.command, click.Group):
        assert context.command.invoke_without_command, words
        assert all(word in options(context) for word in arguments), words
        return
    with context.scope():
        context.command.make_context(context.info_name, arguments, parent=context.parent)
