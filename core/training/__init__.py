"""The local loop, its metrics and its seeds."""
