"""Bags of patch features: the in-memory bag, our feature files, and the files other tools leave behind."""

from fedpath.core.bags.bag import Bag
from fedpath.core.bags.store import (
    SCHEMA_VERSION,
    FeatureMeta,
    is_own,
    read_bag,
    read_failed,
    read_meta,
    write_features,
)

__all__ = ["SCHEMA_VERSION", "Bag", "FeatureMeta", "is_own", "read_bag", "read_failed", "read_meta", "write_features"]
