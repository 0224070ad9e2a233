"""The coordinator's metrics."""

from fedpath.core.exchange.checks import CAUSES
from fedpath.core.monitoring.metrics import BUILD, CERTIFICATE, CHILDREN, Row
from fedpath.server.registry.tables import STATES

_ENDS = ("finished", "failed", "stopped")
RUN_ENDS = (*_ENDS, "queued")
PHASES = ("collect", "aggregate", "keep", "whole")
OUTCOMES = ("answered", "refused", "lost", "late")
REFUSED_CAUSES = ("site", *CAUSES)
DENIED = ("unregistered", "signature")
NOT_SERVED = ("not_served", "length", "too_large")
CHECKS = ("main_loop", "listener", "started", "registry")


def _each(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(word,) for word in words]


ROWS = (
    BUILD,
    Row("fedpath_run_active", "gauge", ("run",), "1 while the run is served, 0 afterwards."),
    Row("fedpath_runs_total", "counter", ("outcome",), "Runs that are over.", known=_each(RUN_ENDS)),
    Row("fedpath_run_stage", "gauge", ("run",), "Number of the stage that a run of several is at."),
    Row("fedpath_round", "gauge", ("run",), "Round that is open, or was last."),
    Row("fedpath_rounds_planned", "gauge", ("run",), "Rounds that the run, or its stage, is to have."),
    Row("fedpath_rounds_total", "counter", ("run", "outcome"), "Rounds that are over."),
    Row(
        "fedpath_round_duration_seconds",
        "histogram",
        ("run", "phase"),
        "How long rounds took: collecting updates, aggregating them, keeping the model, and the whole.",
    ),
    Row("fedpath_round_open", "gauge", ("run",), "1 while a round is open."),
    Row(
        "fedpath_round_start_timestamp_seconds",
        "gauge",
        ("run",),
        "When the round began, in seconds since the epoch; of one that goes on after a restart, when it was taken up.",
    ),
    Row("fedpath_round_deadline_seconds", "gauge", ("run",), "How long the round's deadline is, in seconds."),
    Row("fedpath_round_updates", "gauge", ("run",), "Updates that count so far in the round."),
    Row("fedpath_round_quorum", "gauge", ("run",), "Updates without which the round does not end."),
    Row(
        "fedpath_round_quorum_missing",
        "gauge",
        ("run",),
        "Updates that are missing while the round waits for its quorum and nobody is at work; otherwise 0.",
    ),
    Row("fedpath_site_online", "gauge", ("site",), "1 for a site that is connected, 0 for one that is not.", True),
    Row("fedpath_sites_needed", "gauge", (), "Sites without which no round begins or ends (server.min_sites).", True),
    Row(
        "fedpath_site_last_seen_timestamp_seconds",
        "gauge",
        ("site",),
        "Last request of the site that was accepted, in seconds since the epoch.",
        looked_up=True,
    ),
    Row(
        "fedpath_site_clock_skew_seconds",
        "gauge",
        ("site",),
        "The site's clock minus the coordinator's, at its last request: negative also for the time that one takes.",
        looked_up=True,
    ),
    Row("fedpath_site_replies_total", "counter", ("site", "outcome"), "What became of sites that a round asked."),
    Row(
        "fedpath_transfer_bytes_total",
        "counter",
        ("site", "direction"),
        "Bytes of the bodies of a site's requests (from_site) and of the answers to them (to_site).",
        looked_up=True,
    ),
    Row(
        "fedpath_aggregation_duration_seconds",
        "histogram",
        (),
        "How long checking, adding, combining and stepping took in a round.",
    ),
    Row(
        "fedpath_update_rejected_total",
        "counter",
        ("reason",),
        "Updates that did not count; reason 'site': the site said that it could not.",
        known=_each(REFUSED_CAUSES),
    ),
    Row("fedpath_site_kept_out_total", "counter", ("site",), "Times that a site was kept out before a run or stage."),
    Row(
        "fedpath_model_metric",
        "gauge",
        ("run", "metric", "split"),
        "Figures of the global model, weighted over the sites by patients: AUC or loss.",
    ),
    Row(
        "fedpath_checkpoint_last_success_timestamp_seconds",
        "gauge",
        ("run",),
        "When a round's model was last written to disk, in seconds since the epoch.",
    ),
    Row("fedpath_checkpoint_damaged_total", "counter", (), "Models and records on disk that were found damaged."),
    Row(
        "fedpath_auth_failures_total",
        "counter",
        ("reason",),
        "Requests refused for who sent them: an unregistered key, or a signature that is wrong or out of time.",
        looked_up=True,
    ),
    Row(
        "fedpath_requests_refused_total",
        "counter",
        ("reason",),
        "Requests that the listener refused unread: not served, without a length, or too large.",
        looked_up=True,
    ),
    CERTIFICATE,
    Row("fedpath_listener_up", "gauge", (), "1 while the port for the sites is served.", looked_up=True),
    Row("fedpath_registry_up", "gauge", (), "1 while the registry of runs answers.", looked_up=True),
    Row("fedpath_registry_runs", "gauge", ("state",), "Runs of the federation, by state.", looked_up=True),
    Row("fedpath_disk_free_bytes", "gauge", ("folder",), "Free bytes of the disk that --dir is on.", looked_up=True),
    Row("fedpath_combiners_replaced_total", "counter", (), "Ray actors that combine updates, lost and replaced."),
    Row("fedpath_clusters_lost_total", "counter", (), "Times that the Ray cluster was lost."),
    Row("fedpath_combiner_pieces_total", "counter", (), "Pieces of models that the Ray actors have combined."),
    Row("fedpath_combiner_memory_bytes", "gauge", (), "Most memory that the process which talks to Ray held."),
    Row("fedpath_healthy", "gauge", ("check",), "1 for a check of /health that is fine, 0 for one that fails.", True),
    CHILDREN,
)
REGISTRY_STATES = STATES
