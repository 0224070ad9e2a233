"""``python -m fedpath.cli``: the ``fedpath`` command without its script."""

from fedpath.cli.main import main

main()
