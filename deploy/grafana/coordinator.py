"""The coordinator's dashboard: who is there, what the rounds do, what the hospitals answer, how the model does."""

from charts import BLUE, GREEN, GREY, RED, YELLOW, Board, Query, figure, heat, lines, rows, timeline

HERE = 'instance=~"$instance"'
OF_RUN = f'{HERE}, run=~"$run"'
OF_SITE = f'{HERE}, site=~"$site"'
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
    _sites(made)
    _model(made)
    _safety(made)
    _ray(made)
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
            "The round that is open, or was last, of each run that is served.",
            "none",
            Query(f"fedpath_round{{{OF_RUN}}} and fedpath_run_active{{{OF_RUN}}} == 1", "{{run}}"),
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


def _sites(made: Board) -> None:
    made.row(
        "Hospitals",
        timeline(
            "Online",
            "When each hospital was connected.",
            Query(f"fedpath_site_online{{{OF_SITE}}}", "{{site}}"),
            words={"0": ("away", RED), "1": ("online", GREEN)},
            height=8,
        ),
        lines(
            "Silence",
            "For how long nothing was heard of each hospital. Agents send a heartbeat every 6 s; 120 s are an alert.",
            "s",
            Query(f"site:fedpath_silence:seconds{{{OF_SITE}}}", "{{site}}"),
            steps=((None, GREEN), (120, RED)),
        ),
        lines(
            "Answers by outcome",
            "What the hospitals' answers to rounds came to. Only those answered count; late ones may, with [late].",
            "none",
            Query(
                f"sum by (outcome) (increase(fedpath_site_replies_total{{{OF_SITE}}}[$__rate_interval]))", "{{outcome}}"
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Answers that did not count",
            "Refused, lost or late, by hospital.",
            "none",
            Query(
                "sum by (site, outcome) (increase(fedpath_site_replies_total"
                f'{{{OF_SITE}, outcome!="answered"}}[$__rate_interval]))',
                "{{site}} {{outcome}}",
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Why updates were refused",
            "By reason, of all hospitals: not_finite is NaN or infinity, norm a change that is too large, form wrong "
            "names or shapes, site a hospital that said itself that it could not.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_update_rejected_total{{{HERE}}}[$__rate_interval]))", "{{reason}}"
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Traffic to hospitals",
            "Bytes of orders and models, by hospital: five minutes' mean.",
            "Bps",
            Query(f'site_direction:fedpath_transfer_bytes:rate5m{{{OF_SITE}, direction="to_site"}}', "{{site}}"),
            stacked=True,
        ),
        lines(
            "Traffic from hospitals",
            "Bytes of answers and updates, by hospital: five minutes' mean.",
            "Bps",
            Query(f'site_direction:fedpath_transfer_bytes:rate5m{{{OF_SITE}, direction="from_site"}}', "{{site}}"),
            stacked=True,
        ),
        lines(
            "Clocks",
            "A hospital's clock minus the coordinator's. Over 4 s ahead or 300 s behind, its calls are refused.",
            "s",
            Query(f"fedpath_site_clock_skew_seconds{{{OF_SITE}}}", "{{site}}"),
            least=None,
        ),
        lines(
            "Kept out",
            "Hospitals that did not come into a run: contract, no patients, or a policy. The reason is in the log.",
            "none",
            Query(f"increase(fedpath_site_kept_out_total{{{OF_SITE}}}[$__rate_interval])", "{{site}}"),
            bars=True,
            stacked=True,
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


def _safety(made: Board) -> None:
    made.row(
        "Security and machine",
        rows(
            "Certificates",
            "How long each certificate is valid. Below two weeks, renew: fedpath provision.",
            "s",
            Query(f"certificate:fedpath_validity:seconds{{{HERE}}}", "{{role}} {{subject}}"),
            {"role": "role", "subject": "subject", "Value": "valid for"},
            steps=((None, RED), (3 * 86400, YELLOW), (14 * 86400, GREEN)),
        ),
        lines(
            "Calls refused",
            "By the TLS port: a key that is not registered, a wrong signature (or a clock that is off), and what "
            "is refused before it is read: not served, without a length, too large.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_auth_failures_total{{{HERE}}}[$__rate_interval]))",
                "authentication: {{reason}}",
            ),
            Query(
                f"sum by (reason) (increase(fedpath_requests_refused_total{{{HERE}}}[$__rate_interval]))", "{{reason}}"
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Disk",
            "Free where the coordinator's folder lies. A round needs the model and one update of each hospital.",
            "bytes",
            Query(f"folder:fedpath_disk_free:bytes{{{HERE}}}", "{{folder}}"),
            steps=((None, RED), (10 * 1024**3, GREEN)),
            width=8,
        ),
        lines(
            "Memory",
            "Resident memory of the coordinator's process.",
            "bytes",
            Query(f"process_resident_memory_bytes{{{HERE}}} and on (instance) fedpath_sites_needed", "{{instance}}"),
            width=8,
        ),
        lines(
            "CPU",
            "Cores that the coordinator's process uses.",
            "none",
            Query(
                f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval]) and on (instance) fedpath_sites_needed",
                "{{instance}}",
            ),
            width=8,
        ),
        figure(
            "Damaged on disk",
            "Models and records that did not match their hashes, since this process began; each was gone back from.",
            "none",
            Query(f"sum(fedpath_checkpoint_damaged_total{{{HERE}}})", "damaged"),
            steps=((None, GREEN), (1, RED)),
            width=6,
        ),
        figure(
            "Listener and registry",
            "Whether the TLS port and the database of runs answer.",
            "none",
            Query(f"fedpath_listener_up{{{HERE}}}", "listener"),
            Query(f"fedpath_registry_up{{{HERE}}}", "registry"),
            words={"0": ("down", RED), "1": ("up", GREEN)},
            names=True,
            width=6,
        ),
        figure(
            "Version",
            "Of fedpath at each coordinator.",
            "none",
            Query(f'fedpath_build_info{{{HERE}, role="server"}}', "{{version}}"),
            words={"1": ("running", GREY)},
            names=True,
            width=6,
        ),
    )


def _ray(made: Board) -> None:
    made.row(
        'Ray (aggregation.engine = "ray")',
        figure(
            "Combiners replaced",
            "Processes that combine updates, lost and replaced since this process began. No update is lost with them.",
            "none",
            Query(f"sum(fedpath_combiners_replaced_total{{{HERE}}})", "replaced"),
            steps=((None, GREEN), (1, YELLOW)),
            width=6,
        ),
        figure(
            "Clusters lost",
            "Times that the whole cluster was gone, since this process began.",
            "none",
            Query(f"sum(fedpath_clusters_lost_total{{{HERE}}})", "lost"),
            steps=((None, GREEN), (1, RED)),
            width=6,
        ),
        figure(
            "Pieces combined",
            "Pieces of models that were combined on Ray, since this process began.",
            "none",
            Query(f"sum(fedpath_combiner_pieces_total{{{HERE}}})", "pieces"),
            width=6,
        ),
        figure(
            "Peak memory of the combiner",
            "Resident memory that the process which speaks to Ray needed at most.",
            "bytes",
            Query(f"max(fedpath_combiner_memory_bytes{{{HERE}}})", "peak"),
            width=6,
        ),
        lines(
            "CPU of the nodes",
            "Of Ray's own exporter, by node.",
            "percent",
            Query("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),
            most=100,
            width=8,
        ),
        lines(
            "Memory of the nodes",
            "Of Ray's own exporter, by node: what is used of what there is.",
            "percentunit",
            Query(
                "sum by (instance) (ray_node_mem_used) / sum by (instance) (ray_node_mem_total)",
                "{{instance}}",
            ),
            most=1,
            width=8,
        ),
        lines(
            "Object store",
            "Of Ray's own exporter: where its shared memory lies. SPILLED is on disk, and slow.",
            "bytes",
            Query("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
            stacked=True,
            width=8,
        ),
    )
