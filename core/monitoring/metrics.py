"""Metrics as rows of a table: name, type, labels and help are data, which the documentation is held against.

A row's series are either kept (counted, set, observed as things happen) or looked up when somebody scrapes. Every
process has a registry of its own; the library's global one is not used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "histogram"]
Series = tuple[str, Mapping[str, str], float]
"""Of a metric that is looked up: its name, labels and value."""
Look = Callable[[], Iterable[Series]]
SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)
"""Buckets of how long things take, from a round of tiny models to an afternoon."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    looked_up: bool = False
    """Its series are looked up when somebody scrapes."""
    known: Sequence[tuple[str, ...]] = ()
    """Values of its labels that are known from the start: these series begin at 0, so that an increase from nothing to
    one is seen."""


BUILD = Row("fedpath_build_info", "gauge", ("version", "role"), "1, with the version of fedpath and the role.", True)
CHILDREN = Row(
    "fedpath_child_events_total",
    "counter",
    ("outcome",),
    "Messages of child processes, by what became of them.",
    looked_up=True,
)
CERTIFICATE = Row(
    "fedpath_certificate_not_after_timestamp_seconds",
    "gauge",
    ("role", "subject"),
    "When a certificate ends, in seconds since the epoch; read from its file at each scrape.",
    looked_up=True,
)


class Metrics:
    """The metrics of one process.

    Args:
        rows: what there is.
        role: "server" or "client".
        look: gives the series that are looked up.
    """

    def __init__(self, rows: Sequence[Row], role: str, look: Look) -> None:
        # They are a second series for each, of which nothing here makes use.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._role, self._look = role, look
        self._kept: dict[str, Counter | Gauge | Histogram] = {}
        for row in rows:
            if not row.looked_up:
                self._kept[row.name] = _made(row, self.registry)
        self.registry.register(_LookedUp([row for row in rows if row.looked_up], self._all))
        ProcessCollector(registry=self.registry)

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        counter = self._of(name, labels)
        assert isinstance(counter, Counter)
        counter.inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        gauge = self._of(name, labels)
        assert isinstance(gauge, Gauge)
        gauge.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        histogram = self._of(name, labels)
        assert isinstance(histogram, Histogram)
        histogram.observe(value)

    def forget_run(self, run: str) -> None:
        """Remove all series of a run."""
        for metric in self._kept.values():
            if "run" in metric._labelnames:
                metric.remove_by_labels({"run": run})

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _of(self, name: str, labels: Mapping[str, str]) -> Counter | Gauge | Histogram:
        metric = self._kept[name]
        return metric.labels(**labels) if labels else metric

    def _all(self) -> Iterator[Series]:
        yield BUILD.name, {"version": version("fedpath"), "role": self._role}, 1.0
        yield from self._look()


def _made(row: Row, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    metric: Counter | Gauge | Histogram
    match row.kind:
        case "counter":
            metric = Counter(row.name, row.help, row.labels, registry=registry)
        case "gauge":
            metric = Gauge(row.name, row.help, row.labels, registry=registry)
        case "histogram":
            metric = Histogram(row.name, row.help, row.labels, buckets=SECONDS, registry=registry)
    for values in row.known:
        if row.labels:
            metric.labels(*values)
    return metric


class _LookedUp(Collector):
    """Gives the series that are looked up, to whoever scrapes."""

    def __init__(self, rows: Sequence[Row], look: Look) -> None:
        self._rows, self._look = rows, look

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Give the families without series."""
        return (_family(row) for row in self._rows)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Give the families with their series."""
        families = {row.name: _family(row) for row in self._rows}
        labels = {row.name: row.labels for row in self._rows}
        for name, values, value in self._look():
            families[name].add_metric([values[label] for label in labels[name]], value)
        return (family for family in families.values() if family.samples)


def _family(row: Row) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return family(row.name, row.help, labels=row.labels)
