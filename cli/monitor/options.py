"""The flags of commands that run for long, and the ports they open."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedpath.core.monitoring.health import Health
    from fedpath.core.monitoring.metrics import Metrics

_PANEL = "Monitoring"
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Serve Prometheus metrics (/metrics) and health (/health, /health/ready) there; 0 takes a free port.",
        rich_help_panel=_PANEL,
    ),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Serve gRPC's health service (grpc.health.v1) there; 0 takes a free port.",
        rich_help_panel=_PANEL,
    ),
]
MonitorHost = Annotated[
    str, typer.Option(help="Address for both; 0.0.0.0 for all of this machine's.", rich_help_panel=_PANEL)
]


@contextmanager
def monitored(
    host: str, metrics_port: int | None, health_port: int | None, metrics: "Metrics", health: "Health"
) -> Iterator[None]:
    """Open the ports that were asked for, and say where they are.

    Raises:
        ConfigError: a port cannot be taken.
    """
    shown = f"[{host}]" if ":" in host else host
    with ExitStack() as stack:
        if metrics_port is not None:
            from fedpath.cli.monitor.web import WebPort

            web = stack.enter_context(WebPort(host, metrics_port, metrics, health))
            typer.echo(f"metrics on http://{shown}:{web.port}/metrics")
        if health_port is not None:
            from fedpath.cli.monitor.rpc import RpcPort

            rpc = stack.enter_context(RpcPort(host, health_port, health))
            typer.echo(f"health (gRPC) on {shown}:{rpc.port}")
        yield
