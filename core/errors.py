"""Errors a user can act on: one line that names the file, key, site or round, and the remedy.

The command line prints ``error: <message>`` and ``remedy: <remedy>`` and exits with ``exit_code``; a traceback is shown
only with ``--debug``.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return the remedy for a word that is not known: the nearest of the known ones, else ``otherwise``."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise


class FedpathError(Exception):
    """A failure with a known cause.

    Args:
        message: what is wrong, naming the file, key, site or round.
        remedy: what the reader should do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})"


class ConfigError(FedpathError):
    """federation.toml, site.toml or a kit is wrong."""

    exit_code = 2


class DataError(FedpathError):
    """A slide, a feature file, a manifest or a table is wrong."""

    exit_code = 3


class ConnectionFailedError(FedpathError):
    """The coordinator cannot be reached, or does not accept this site."""

    exit_code = 4


class RefusedError(FedpathError):
    """One side does not accept what the other sent: policy, feature contract, update checks.

    Args:
        message, remedy: as of any error.
        cause: the same in one word of a few that whoever raises it names, for counting.
    """

    exit_code = 5

    def __init__(self, message: str, *, remedy: str, cause: str = "other") -> None:
        super().__init__(message, remedy=remedy)
        self.cause = cause


class StoppedError(FedpathError):
    """Somebody asked this process to stop (Ctrl-C, SIGTERM); what was finished is kept."""

    exit_code = 130

    def __init__(self, kept: str = "what was finished is kept") -> None:
        super().__init__("stopped on request", remedy=f"{kept}; give the same command to start again")


class FederationError(FedpathError):
    """The federation cannot go on: too few sites joined or answered."""

    exit_code = 6
