"""The robust estimators on the benchmark's updates: fedpath's, and Flower's strategies on replies as they came."""

import time
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation import Combined, Counted, combiner

F = 1
"""How many hospitals may lie."""
SETTINGS: dict[str, AggregationSection] = {
    "median": AggregationSection(combine="median"),
    "trimmed": AggregationSection(combine="trimmed-mean", byzantine=F),
    "geometric": AggregationSection(combine="geometric-median"),
    "krum": AggregationSection(combine="krum", byzantine=F),
    "multi_krum": AggregationSection(combine="multi-krum", byzantine=F),
    "bulyan": AggregationSection(combine="bulyan", byzantine=F),
}


def strategies(sites: int) -> dict[str, flower.FedAvg]:
    """Return Flower's strategies that do the same; it has no geometric median."""
    return {
        "median": flower.FedMedian(),
        "trimmed": flower.FedTrimmedAvg(beta=(F + 0.5) / sites),
        "krum": flower.Krum(num_malicious_nodes=F),
        "multi_krum": flower.MultiKrum(num_malicious_nodes=F, num_nodes_to_select=sites - F),
        "bulyan": flower.Bulyan(num_malicious_nodes=F),
    }


def files_of(folder: Path, sites: int, files: int) -> list[ArrayFile]:
    """Open as many updates as there are sites; there may be fewer files than sites."""
    return [ArrayFile(folder / f"{number % files}.safetensors") for number in range(sites)]


def combine(files: list[ArrayFile], settings: AggregationSection, reference: Arrays | None = None) -> Combined:
    """Combine as the coordinator does; where there is no model yet, the first update is one."""
    if reference is None:
        reference = {name: files[0].array(name) for name in files[0].names}
    adding = combiner(reference, settings)
    for number, file in enumerate(files):
        adding.add(Counted(f"site-{number:03d}", file, {"image": 100.0 + number}))
    return adding.result()


def serialised(files: list[ArrayFile]) -> list[dict[str, Array]]:
    """Return updates as Flower holds them: arrays in the bytes that came."""
    return [{name: Array(np.array(file.array(name))) for name in sorted(file.names)} for file in files]


def flower_s(strategy: flower.FedAvg, held: list[dict[str, Array]]) -> float:
    """Return the seconds that a strategy takes for replies; making messages of them is not counted."""
    replies = [_reply(arrays, 1 + number) for number, arrays in enumerate(held)]
    started = time.perf_counter()
    result, _ = strategy.aggregate_train(1, replies)
    seconds = time.perf_counter() - started
    assert result is not None
    return seconds


def _reply(arrays: dict[str, Array], node: int) -> Message:
    facts: dict[str, Any] = {
        "run_id": 1,
        "message_id": f"answer {node}",
        "src_node_id": node,
        "dst_node_id": 0,
        "reply_to_message_id": f"order {node}",
        "group_id": "",
        "created_at": 0.0,
        "ttl": 3600.0,
        "message_type": "train",
    }
    # A record of its own: some strategies take the arrays out of it.
    content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": MetricRecord({"num-examples": 99 + node})})
    return Message(metadata=Metadata(**facts), content=content)  # type: ignore[call-overload,no-any-return]
