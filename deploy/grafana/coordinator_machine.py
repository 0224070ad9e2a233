"""The coordinator's dashboard, of what it runs on: certificates, calls that were refused, disk, memory, Ray."""

from charts import GREEN, GREY, RED, YELLOW, Board, Query, figure, lines, rows

HERE = 'instance=~"$instance"'


def machine(made: Board) -> None:
    """Add certificates, calls that were refused, and the machine."""
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


def ray(made: Board) -> None:
    """Add what is combined on Ray, and Ray's own exporter."""
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
