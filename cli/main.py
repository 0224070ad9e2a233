"""Entry point of the ``fedpath`` command."""


def main() -> None:
    """Run the command line."""
