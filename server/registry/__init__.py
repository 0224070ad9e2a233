"""The registry of runs: what was submitted, what became of it, which hospital counted where.

It is an index. The truth about a run is in its folder (`fedpath.server.folder`), from which a coordinator recovers and
from which this index is made again when it is lost (`fedpath.server.registry.index`). What stands only here is what
people ask for: the order of the queue and requests to stop. Both are kept in the run's folder as well (`state.json`).

SQLite by default, one file in the coordinator's folder; PostgreSQL by URL.
"""

from fedpath.server.registry.database import RegistryAwayError, open_database
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Part, Round, Run, Site

__all__ = ["Part", "Registry", "RegistryAwayError", "Round", "Run", "Site", "open_database"]
