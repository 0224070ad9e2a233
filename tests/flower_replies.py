"""Replies as Flower's strategies are given them, without a network: to compare results on the same numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from numpy.typing import NDArray


def reply(arrays: Mapping[str, NDArray[Any]], node: int = 1, examples: int = 1) -> Message:
    """A node's answer to a train message."""
    facts = Metadata(
        run_id=1,
        message_id=f"answer {node}",
        src_node_id=node,
        dst_node_id=0,
        reply_to_message_id=f"order {node}",
        group_id="",
        created_at=0.0,
        ttl=3600.0,
        message_type="train",
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": examples}),
        }
    )
    return Message(metadata=facts, content=content)  # type: ignore[call-overload,no-any-return]


def aggregate(
    strategy: flower.FedAvg,
    updates: Sequence[Mapping[str, NDArray[Any]]],
    examples: Sequence[int] = (),
    number: int = 1,
) -> dict[str, NDArray[Any]]:
    """What a strategy makes of updates, by name."""
    counts = examples or [1] * len(updates)
    replies = [reply(arrays, 1 + i, n) for i, (arrays, n) in enumerate(zip(updates, counts, strict=True))]
    result, _ = strategy.aggregate_train(number, replies)
    assert result is not None
    return {name: np.asarray(array.numpy()) for name, array in result.items()}
