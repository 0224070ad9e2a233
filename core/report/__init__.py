"""What a run amounted to: ``ReportData`` in, the self-contained page and the summary for programs out."""

from fedpath.core.report.data import (
    Departure,
    Federation,
    FileEntry,
    Heatmap,
    Hospital,
    Interval,
    MessageKind,
    ModelResult,
    Prediction,
    Refusal,
    ReportData,
    Round,
    SiteRound,
    Splits,
)
from fedpath.core.report.page import render_report
from fedpath.core.report.summary import summary

__all__ = [
    "Departure",
    "Federation",
    "FileEntry",
    "Heatmap",
    "Hospital",
    "Interval",
    "MessageKind",
    "ModelResult",
    "Prediction",
    "Refusal",
    "ReportData",
    "Round",
    "SiteRound",
    "Splits",
    "render_report",
    "summary",
]
