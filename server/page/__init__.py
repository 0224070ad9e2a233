"""The coordinator's web page: hospitals, runs, the live round, curves, traffic, models, the log, and a form for runs.

`Page` listens to the coordinator's events (`live`), reads what is over from the registry and the run folders
(`history`), and answers a browser (`app`). It only reads, except where somebody submits, stops or resumes a run: that
goes through `fedpath.server.registry.requests`, as on the command line.
"""

from fedpath.server.page.page import Page

__all__ = ["Page"]
