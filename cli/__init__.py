"""The ``fedpath`` command: thin; it composes the other rooms."""
