"""A hospital's dashboard, for its own staff: connection, what the agent does, its GPU, its data, what left."""

from charts import BLUE, GREEN, GREY, ORANGE, RED, YELLOW, Board, Query, figure, heat, lines, rows, timeline

HERE = 'instance=~"$instance"'
UID = "fedpath-site"


def board() -> Board:
    """Return the dashboard."""
    made = Board(
        UID,
        "fedpath: hospital",
        "A hospital's agent, for its own staff. No patient, slide or path is among what it shows.",
        tags=["fedpath", "federated-learning"],
        span="6h",
    )
    made.variable(
        "site", "Hospital", "Label of the scrape configuration", "label_values(fedpath_client_connected, site)"
    )
    made.variable(
        "instance", "Agent", "Whose metrics port", 'label_values(fedpath_client_connected{site=~"$site"}, instance)'
    )
    made.alerts("Alerts", 'ALERTS{alertname=~"Fedpath.*", alertstate="firing", job!~".*coordinator.*"}')
    _overview(made)
    _work(made)
    _machine(made)
    _leaves(made)
    _trouble(made)
    return made


def _overview(made: Board) -> None:
    made.row(
        "Now",
        figure(
            "Connection",
            "Whether the agent is connected to the coordinator.",
            "none",
            Query(f"fedpath_client_connected{{{HERE}}}", "{{site}}"),
            words={"0": ("away", RED), "1": ("connected", GREEN)},
            background=True,
        ),
        figure(
            "Phase",
            "What the agent does now.",
            "none",
            Query(f"fedpath_client_phase{{{HERE}}} == 1", "{{phase}}"),
            words={"1": ("now", BLUE)},
            names=True,
        ),
        figure(
            "Last heard of the coordinator",
            "How long ago the coordinator last answered a call.",
            "s",
            Query(f"time() - fedpath_client_last_contact_timestamp_seconds{{{HERE}}}", "{{site}}"),
            steps=((None, GREEN), (60, YELLOW), (300, RED)),
        ),
        figure(
            "Round",
            "Of the last order to train.",
            "none",
            Query(f"fedpath_client_round{{{HERE}}}", "{{site}}"),
        ),
        figure(
            "Certificates",
            "How long the federation's authority in the kit is valid. Below two weeks, ask for a new kit.",
            "s",
            Query(f"certificate:fedpath_validity:seconds{{{HERE}}}", "{{role}}"),
            steps=((None, RED), (3 * 86400, YELLOW), (14 * 86400, GREEN)),
        ),
        figure(
            "Health",
            "The checks behind GET /health of this process.",
            "none",
            Query(f"fedpath_client_healthy{{{HERE}}}", "{{check}}"),
            words={"0": ("failing", RED), "1": ("ok", GREEN)},
            names=True,
        ),
    )


def _work(made: Board) -> None:
    made.row(
        "Work",
        timeline(
            "Connection",
            "When the agent was connected.",
            Query(f"fedpath_client_connected{{{HERE}}}", "{{site}} {{instance}}"),
            words={"0": ("away", RED), "1": ("connected", GREEN)},
            height=4,
        ),
        timeline(
            "Phases",
            "What the agent did when: one band a phase.",
            Query(f"fedpath_client_phase{{{HERE}}} == 1", "{{phase}}"),
            words={"1": ("at it", BLUE)},
            height=9,
        ),
        lines(
            "Where the time goes",
            "Seconds that each phase takes once it is over, the mean of the last hour.",
            "s",
            Query(f"phase:fedpath_client_phase_duration:mean1h{{{HERE}}}", "{{phase}}"),
        ),
        heat(
            "How long training takes",
            "A round's training by its length, over time.",
            "s",
            "sum by (le) (increase(fedpath_client_phase_duration_seconds_bucket"
            f'{{{HERE}, phase="training"}}[$__rate_interval]))',
        ),
        lines(
            "Slides trained on",
            "A second, each pass counts: five minutes' mean.",
            "none",
            Query(f"instance:fedpath_client_samples:rate5m{{{HERE}}}", "{{site}} slides/s"),
        ),
        lines(
            "Training loss",
            "Of the last round that was trained here.",
            "none",
            Query(f"fedpath_client_training_loss{{{HERE}}}", "{{site}}"),
            least=None,
        ),
        lines(
            "Orders",
            "What the coordinator asked for.",
            "none",
            Query(f"sum by (order) (increase(fedpath_client_orders_total{{{HERE}}}[$__rate_interval]))", "{{order}}"),
            bars=True,
            stacked=True,
        ),
        lines(
            "Slides encoded",
            "Slides that were made into feature files, in each interval.",
            "none",
            Query(f"increase(fedpath_client_slides_encoded_total{{{HERE}}}[$__rate_interval])", "{{site}}"),
            bars=True,
        ),
    )


def _machine(made: Board) -> None:
    made.row(
        "GPU and machine",
        lines(
            "GPU memory",
            "Used by all programs, the most that training held (peak), and what the card has. No GPU, no curve.",
            "bytes",
            Query(f"fedpath_client_gpu_memory_bytes{{{HERE}}}", "GPU {{gpu}} {{kind}}"),
        ),
        lines(
            "GPU utilization",
            "Share of the time that the GPU worked. Low while training: the data come too slowly. Needs pynvml.",
            "percentunit",
            Query(f"fedpath_client_gpu_utilization_ratio{{{HERE}}}", "GPU {{gpu}}"),
            most=1,
        ),
        lines(
            "Disk",
            "Free where the state and the feature files lie.",
            "bytes",
            Query(f"folder:fedpath_disk_free:bytes{{{HERE}}}", "{{folder}}"),
            steps=((None, RED), (10 * 1024**3, GREEN)),
            width=8,
        ),
        lines(
            "Memory",
            "Resident memory of the agent's process, and the most that one of DeepSpeed's training processes held.",
            "bytes",
            Query(f"fedpath_client_trainer_memory_bytes{{{HERE}}} > 0", "training, at most"),
            Query(
                f"process_resident_memory_bytes{{{HERE}}} and on (instance) fedpath_client_connected", "{{instance}}"
            ),
            width=8,
        ),
        lines(
            "CPU",
            "Cores that the agent's process uses.",
            "none",
            Query(
                f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval]) "
                "and on (instance) fedpath_client_connected",
                "{{instance}}",
            ),
            width=8,
        ),
    )


def _leaves(made: Board) -> None:
    made.row(
        "What leaves and what comes",
        lines(
            "Sent and received",
            "Answers with their arrays, and orders with theirs: five minutes' mean. What was in each message: fedpath "
            "client audit.",
            "Bps",
            Query(f"direction:fedpath_client_transfer_bytes:rate5m{{{HERE}}}", "{{direction}}"),
        ),
        figure(
            "Left since the start",
            "Bytes that this agent has sent since it began.",
            "bytes",
            Query(f'sum(fedpath_client_transfer_bytes_total{{{HERE}, direction="sent"}})', "sent"),
            width=6,
        ),
        figure(
            "Audit log",
            "Times that the audit log could not be written since the agent began; nothing leaves that is not in it.",
            "none",
            Query(f"sum(fedpath_audit_write_errors_total{{{HERE}}})", "errors"),
            steps=((None, GREEN), (1, RED)),
            width=6,
        ),
        rows(
            "Certificates",
            "How long each certificate of the kit is valid.",
            "s",
            Query(f"certificate:fedpath_validity:seconds{{{HERE}}}", "{{role}} {{subject}}"),
            {"role": "role", "subject": "subject", "Value": "valid for"},
            steps=((None, RED), (3 * 86400, YELLOW), (14 * 86400, GREEN)),
        ),
    )


def _trouble(made: Board) -> None:
    made.row(
        "Denials and errors",
        lines(
            "Refused by this hospital's policy",
            "Orders that broke [policy] of site.toml, by reason: nothing was done.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_client_orders_refused_total{{{HERE}}}[$__rate_interval]))",
                "{{reason}}",
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Code denied",
            "Models or packages that were asked for and are not allowed or not installed here: nothing ran.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_client_code_denied_total{{{HERE}}}[$__rate_interval]))",
                "{{reason}}",
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Orders that failed",
            "By kind of error; the message is in the agent's log.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_client_orders_failed_total{{{HERE}}}[$__rate_interval]))",
                "{{reason}}",
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Data that cannot be read",
            "By kind of file; which one is in the agent's log, and nowhere else.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_client_data_errors_total{{{HERE}}}[$__rate_interval]))",
                "{{reason}}",
            ),
            bars=True,
            stacked=True,
        ),
        figure(
            "Out of memory",
            "Times that training asked for more memory than there was, since the agent began.",
            "none",
            Query(f"sum(fedpath_client_oom_total{{{HERE}}})", "times"),
            steps=((None, GREEN), (1, RED)),
            width=8,
        ),
        figure(
            "Training lost",
            "Processes that trained and were killed, since the agent began.",
            "none",
            Query(f"sum(fedpath_client_training_lost_total{{{HERE}}})", "times"),
            steps=((None, GREEN), (1, ORANGE)),
            width=8,
        ),
        figure(
            "Version",
            "Of fedpath at this hospital.",
            "none",
            Query(f'fedpath_build_info{{{HERE}, role="client"}}', "{{version}}"),
            words={"1": ("running", GREY)},
            names=True,
            width=8,
        ),
    )
