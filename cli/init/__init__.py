"""``fedpath init``: a few questions, and a commented federation.toml or site.toml."""
