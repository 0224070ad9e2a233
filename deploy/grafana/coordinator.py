"""The coordinator's dashboard: who is there, what the rounds do, what the hospitals answer, how the model does."""

from charts import BLUE, GREEN, RED, Board, Query, figure, heat, lines, timeline
from coordinator_machine import machine, ray
from coordinator_sites import sites

HERE = 'instance=~"$instance"'
OF_RUN = f'{HERE}, run=~"$run"'
UID = "fedpath-coordinator"


def board() -> Board:
    """Return the dashboard."""
    made = Board(
        UID,
        "fedpath: coordinator",
        "A federation as its coordinator sees it. No patient, slide or path is among what it shows.",
        tags=["fedpath", "federated-learning"],
        span="6h",
    )
    made.variable(
        "instance", "Coordinator", "Whose metrics port", 'label_values(fedpath_build_info{role="server"}, instance)'
    )
    made.variable("run", "Run", "Runs of the coordinator", f"label_values(fedpath_run_active{{{HERE}}}, run)")
    made.variable(
        "site", "Hospital", "Hospitals of the federation", f"label_values(fedpath_site_online{{{HERE}}}, site)"
    )
    made.alerts("Alerts", 'ALERTS{alertname=~"Fedpath.*", alertstate="firing", job=~".*coordinator.*"}')
    _overview(made)
    _rounds(made)
    sites(made)
    _model(made)
    machine(made)
    ray(made)
    return made


def _overview(made: Board) -> None:
    made.row(
        "Now",
        figure(
            "Hospitals online",
            "Connected now, and how many a round needs (server.min_sites).",
            "none",
            Query(f"sum(fedpath_site_online{{{HERE}}})", "online"),
            Query(f"sum(fedpath_sites_needed{{{HERE}}})", "needed"),
            names=True,
            width=5,
        ),
        figure(
            "Runs going on",
            "Runs that are served now.",
            "none",
            Query(f"sum(fedpath_run_active{{{OF_RUN}}})", "runs"),
            width=3,
        ),
        figure(
            "Round",
            "The round that is open, or was last, of each run that is served; of a pipeline, the stage as well.",
            "none",
            Query(f"fedpath_round{{{OF_RUN}}} and fedpath_run_active{{{OF_RUN}}} == 1", "{{run}}"),
            Query(f"fedpath_run_stage{{{OF_RUN}}} and fedpath_run_active{{{OF_RUN}}} == 1", "{{run}} stage"),
            names=True,
        ),
        figure(
            "Rounds done",
            "Share of the planned rounds that each served run has begun.",
            "percentunit",
            Query(
                f"fedpath_round{{{OF_RUN}}} / fedpath_rounds_planned{{{OF_RUN}}} "
                f"and fedpath_run_active{{{OF_RUN}}} == 1",
                "{{run}}",
            ),
            names=True,
        ),
        figure(
            "Time to the deadline",
            "Of the open round. Below zero it should have ended: it waits for its quorum, or something hangs.",
            "s",
            Query(
                f"fedpath_round_deadline_seconds{{{OF_RUN}}} - run:fedpath_round_age:seconds{{{OF_RUN}}}",
                "{{run}}",
            ),
            steps=((None, RED), (0, BLUE)),
            names=True,
        ),
        figure(
            "Health",
            "The checks behind GET /health of this process.",
            "none",
            Query(f"fedpath_healthy{{{HERE}}}", "{{check}}"),
            words={"0": ("failing", RED), "1": ("ok", GREEN)},
            names=True,
        ),
    )


def _rounds(made: Board) -> None:
    made.row(
        "Rounds",
        timeline(
            "Rounds",
            "Which round was open when. A gap is a time without a round: before the first, or between two.",
            Query(f"fedpath_round{{{OF_RUN}}} and fedpath_round_open{{{OF_RUN}}} == 1", "{{run}}"),
            height=5,
        ),
        lines(
            "Where the time goes",
            "Seconds a round spends in each phase, the mean of the last hour: waiting for the hospitals (collect), "
            "combining (aggregate), writing models and records (keep).",
            "s",
            Query(f'run_phase:fedpath_round_duration:mean1h{{{OF_RUN}, phase!="whole"}}', "{{run}} {{phase}}"),
            stacked=True,
        ),
        heat(
            "How long rounds take",
            "Whole rounds by their length, over time. A second band is a slower hospital.",
            "s",
            "sum by (le) (increase(fedpath_round_duration_seconds_bucket"
            f'{{{OF_RUN}, phase="whole"}}[$__rate_interval]))',
        ),
        lines(
            "Updates of the open round",
            "Updates that count so far, beside those without which the round does not end (quorum).",
            "none",
            Query(f"fedpath_round_updates{{{OF_RUN}}}", "{{run}} counted"),
            Query(f"fedpath_round_quorum{{{OF_RUN}}}", "{{run}} quorum"),
            Query(f"fedpath_round_quorum_missing{{{OF_RUN}}}", "{{run}} missing, nobody at work"),
        ),
        lines(
            "Combining",
            "Seconds a round spends on checking, adding and combining: the median round and the slowest tenth.",
            "s",
            Query(
                "histogram_quantile(0.5, sum by (le) "
                f"(rate(fedpath_aggregation_duration_seconds_bucket{{{HERE}}}[$__rate_interval])))",
                "median",
            ),
            Query(
                "histogram_quantile(0.9, sum by (le) "
                f"(rate(fedpath_aggregation_duration_seconds_bucket{{{HERE}}}[$__rate_interval])))",
                "slowest tenth",
            ),
        ),
        lines(
            "Rounds that ended",
            "By how they ended. Anything but finished is in the log with its reason.",
            "none",
            Query(f"sum by (outcome) (increase(fedpath_rounds_total{{{OF_RUN}}}[$__rate_interval]))", "{{outcome}}"),
            bars=True,
            stacked=True,
        ),
        lines(
            "Since the last kept model",
            "How old the newest model on disk is, of runs that are served. It should fall to zero with every round.",
            "s",
            Query(
                f"(time() - fedpath_checkpoint_last_success_timestamp_seconds{{{OF_RUN}}}) "
                f"and fedpath_run_active{{{OF_RUN}}} == 1",
                "{{run}}",
            ),
        ),
    )


def _model(made: Board) -> None:
    made.row(
        "Model",
        lines(
            "Loss",
            "Training loss of the hospitals' updates, and validation loss of the global model, weighted by patients. "
            "Validation that rises while training falls is overfitting; both rising is divergence.",
            "none",
            Query(f'fedpath_model_metric{{{OF_RUN}, metric="loss"}}', "{{run}} {{split}}"),
            least=None,
        ),
        lines(
            "AUC",
            "Of the global model: validation after every round, test at the end. 0.5 is guessing.",
            "none",
            Query(f'fedpath_model_metric{{{OF_RUN}, metric="auc"}}', "{{run}} {{split}}"),
            most=1,
        ),
        lines(
            "Runs that ended",
            "By how they ended; a failed one is in the log with its reason, and can be resumed.",
            "none",
            Query(f"sum by (outcome) (increase(fedpath_runs_total{{{HERE}}}[$__rate_interval]))", "{{outcome}}"),
            bars=True,
            stacked=True,
        ),
        lines(
            "Runs in the registry",
            "By state. A queue that grows wants another coordinator, or server.parallel.",
            "none",
            Query(f"sum by (state) (fedpath_registry_runs{{{HERE}}})", "{{state}}"),
            stacked=True,
        ),
    )
