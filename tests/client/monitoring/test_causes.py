"""Errors, raised where they are raised, as words of a small fixed set."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fedpath.client.audit import verify
from fedpath.client.monitoring.causes import DATA_CAUSES, ORDER_CAUSES, data_cause, order_cause
from fedpath.client.slides.reader import Slide
from fedpath.core.bags.store import read_bag
from fedpath.core.cohort.manifest import load_cohort
from fedpath.core.errors import ConfigError, DataError, RefusedError
from fedpath.core.training.engines.launch import TrainingProcessError


@pytest.mark.parametrize(
    ("read", "cause"),
    [
        (read_bag, "features"),
        (partial(load_cohort, labels=["no", "yes"]), "manifest"),
        (verify, "audit"),
        (Slide, "slide"),
    ],
)
def test_what_an_error_is_about_is_told_by_who_raised_it(
    tmp_path: Path, read: Callable[..., object], cause: str
) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_text("{}\nnothing of all that\n")
    with pytest.raises(DataError) as caught:
        read(bad)
    assert data_cause(caught.value) == cause
    assert cause in DATA_CAUSES


def test_an_error_of_nobody_is_other() -> None:
    with pytest.raises(DataError) as caught:
        raise DataError("x", remedy="y")
    assert data_cause(caught.value) == "other"
    assert data_cause(DataError("never raised", remedy="y")) == "other"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataError("x", remedy="y"), "data"),
        (ConfigError("x", remedy="y"), "config"),
        (RefusedError("x", remedy="y"), "refused"),
        (TrainingProcessError("x", remedy="y"), "process"),
        (torch.OutOfMemoryError("x"), "memory"),
        (ZeroDivisionError("x"), "other"),
    ],
)
def test_why_an_order_failed(error: Exception, cause: str) -> None:
    assert order_cause(error) == cause
    assert cause in ORDER_CAUSES
