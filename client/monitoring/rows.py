"""The metrics of a hospital's agent."""

from fedpath.client.monitoring.causes import DATA_CAUSES, ORDER_CAUSES
from fedpath.client.policy import CAUSES, CODE_CAUSES
from fedpath.core.monitoring.metrics import BUILD, CERTIFICATE, CHILDREN, Row

IDLE = ("starting", "waiting")
WORK = (
    "fetching",
    "describing",
    "reading",
    "validating",
    "training",
    "evaluating",
    "encoding",
    "keeping",
    "sending",
)
PHASES = (*IDLE, *WORK)
ORDERS = ("describe", "train", "evaluate", "encode", "finish", "refuse")
CHECKS = ("main_loop", "coordinator", "audit")


def _each(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(word,) for word in words]


ROWS = (
    BUILD,
    Row("fedpath_client_connected", "gauge", (), "1 while the agent is connected to the coordinator."),
    Row(
        "fedpath_client_last_contact_timestamp_seconds",
        "gauge",
        (),
        "Last answer of the coordinator, in seconds since the epoch.",
        looked_up=True,
    ),
    Row("fedpath_client_phase", "gauge", ("phase",), "1 for what the agent does now, 0 for the rest."),
    Row(
        "fedpath_client_phase_duration_seconds",
        "histogram",
        ("phase",),
        "How long phases of work took.",
        known=_each(WORK),
    ),
    Row("fedpath_client_round", "gauge", (), "Round of the last order to train."),
    Row("fedpath_client_orders_total", "counter", ("order",), "Orders that came.", known=_each(ORDERS)),
    Row(
        "fedpath_client_orders_refused_total",
        "counter",
        ("reason",),
        "Orders that this hospital's policy refused.",
        known=_each(CAUSES),
    ),
    Row(
        "fedpath_client_orders_failed_total",
        "counter",
        ("reason",),
        "Orders that could not be carried out.",
        known=_each(ORDER_CAUSES),
    ),
    Row(
        "fedpath_client_code_denied_total",
        "counter",
        ("reason",),
        "Orders refused for the code that would have run: a model that is not allowed, installed or of this version.",
        known=_each(CODE_CAUSES),
    ),
    Row("fedpath_client_samples_total", "counter", (), "Slides trained on; each pass over one counts."),
    Row(
        "fedpath_client_transfer_bytes_total",
        "counter",
        ("direction",),
        "Bytes of orders received and answers sent, with their arrays.",
        known=[("sent",), ("received",)],
    ),
    Row("fedpath_client_training_loss", "gauge", (), "Training loss of the last round trained."),
    Row("fedpath_client_slides_encoded_total", "counter", (), "Slides encoded."),
    Row(
        "fedpath_client_gpu_memory_bytes",
        "gauge",
        ("gpu", "kind"),
        "A GPU's memory: used by anybody, in total, and the most that fedpath's tensors held there (peak).",
        looked_up=True,
    ),
    Row(
        "fedpath_client_gpu_utilization_ratio",
        "gauge",
        ("gpu",),
        "Share of time in which the GPU worked, of the last second or less; needs pynvml.",
        looked_up=True,
    ),
    Row(
        "fedpath_client_trainer_memory_bytes",
        "gauge",
        (),
        "Most memory (resident) that one of DeepSpeed's training processes held.",
    ),
    Row(
        "fedpath_client_data_errors_total",
        "counter",
        ("reason",),
        "Slides, feature files, tables and patches that could not be used, and a damaged audit log.",
        known=_each(DATA_CAUSES),
    ),
    Row("fedpath_client_oom_total", "counter", (), "Times that training ran out of the device's memory."),
    Row("fedpath_client_training_lost_total", "counter", (), "Times that a process that trains was lost."),
    Row(
        "fedpath_audit_write_errors_total",
        "counter",
        (),
        "Answers that did not leave, for they could not be written into the audit log.",
    ),
    CERTIFICATE,
    Row(
        "fedpath_client_disk_free_bytes",
        "gauge",
        ("folder",),
        "Free bytes of the disks that the state and the features are on.",
        looked_up=True,
    ),
    Row("fedpath_client_healthy", "gauge", ("check",), "1 for a check of /health that is fine, else 0.", True),
    CHILDREN,
)
