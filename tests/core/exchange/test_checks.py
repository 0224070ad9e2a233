"""Every reason for which an update does not count, but for numbers that are not finite: tests/server/aggregation."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpath.core.config.federated import ExchangeSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.checks import Entitled, Expected, check_change, check_form, refused
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.messages import Metrics, Update
from fedpath.core.exchange.stored import CHANGES, ArrayFile
from fedpath.core.exchange.wire import Arrays, hash_arrays

FLOAT32 = ExchangeSection()
REFERENCE: Arrays = {
    "image/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "image/bias": np.zeros(2, dtype=np.float32),
    "clinical/weight": np.ones(4, dtype=np.float32),
    "norm/scale": np.array(1, dtype=np.float32),
    "standard/mean": np.array([5], dtype=np.float32),
}
BASE = hash_arrays(REFERENCE)
# What the site described: 40 training patients, 12 of them with clinical data.
ENTITLED = Entitled(40, 12, clinical_groups=frozenset({"clinical"}), agreed_groups=frozenset({"standard"}))


def trained(*groups: str) -> Arrays:
    """The reference after training, of some groups; the change of image has norm 5, of clinical 12, of norm 84."""
    arrays = {name: array.copy() for name, array in REFERENCE.items() if name.partition("/")[0] in groups}
    if "image" in groups:
        arrays["image/weight"][0, :2] += [3, 4]
    if "clinical" in groups:
        arrays["clinical/weight"][0] += 12
    if "norm" in groups:
        arrays["norm/scale"] += 84
    return arrays


def check(
    arrays: Arrays,
    patients: dict[str, int] | None = None,
    *,
    round_: int = 2,
    base: str = BASE,
    entitled: Entitled = ENTITLED,
    max_norm: float | None = None,
    exchange: ExchangeSection = FLOAT32,
    metadata: dict[str, str] | None = None,
    control: bool = False,
) -> None:
    """What the coordinator does with an update, but for looking for numbers that are not finite."""
    if patients is None:
        patients = {name.partition("/")[0]: 10 for name in arrays if not name.startswith(CONTROL)}
    header = Update(round=round_, base=base, patients=patients, training_loss=0.5, validation=Metrics(), seconds=1.0)
    shapes = {name: array.shape for name, array in REFERENCE.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "B.safetensors"
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, metadata or {"": ""})
        try:
            with ArrayFile(path) as stated:
                expected = Expected(2, BASE, shapes, exchange, control=control)
                check_form("B", header, stated, expected=expected, entitled=entitled)
        except RefusedError as error:
            if "arrays are not readable" in error.message:
                raise refused("B", 2, error.message) from None
            raise
    check_change("B", 2, norms(arrays), max_norm)


def norms(arrays: Arrays) -> dict[str, float]:
    """The literal norm of the change, by group."""
    squares: dict[str, float] = {}
    for name, array in arrays.items():
        if not name.startswith(CONTROL):
            group, change = name.partition("/")[0], array.astype(np.float64) - REFERENCE[name]
            squares[group] = squares.get(group, 0.0) + float((change * change).sum())
    return {group: square**0.5 for group, square in squares.items()}


def refusal(arrays: Arrays, patients: dict[str, int] | None = None, **changes: object) -> str:
    with pytest.raises(RefusedError) as caught:
        check(arrays, patients, **changes)  # type: ignore[arg-type]
    start = "site B, round 2: update refused: "
    assert caught.value.message.startswith(start)
    assert caught.value.remedy == "look at the log of that site"
    return caught.value.message.removeprefix(start)


def test_a_good_update_passes() -> None:
    check(trained("image", "clinical", "norm"))
    check(trained("image", "clinical", "norm"), {"image": 3, "clinical": 1, "norm": 40})
    check(trained("image", "clinical", "norm"), {"image": 40, "clinical": 12, "norm": 40})


def test_a_site_may_send_only_the_groups_it_trained() -> None:
    check(trained("image"))
    check(trained("norm", "clinical"))


def test_another_round_is_refused() -> None:
    assert refusal(trained("image"), round_=1) == "it is of round 1"
    assert refusal(trained("image"), round_=3) == "it is of round 3"
    assert refusal(trained("image"), round_=-2) == "it is of round -2"


def test_another_starting_point_is_refused() -> None:
    other = "f" * 64
    assert refusal(trained("image"), base=other) == f"it started from model {other[:12]}…, not {BASE[:12]}…"


def test_a_missing_parameter_is_named() -> None:
    arrays = trained("image", "clinical")
    del arrays["image/bias"]
    assert refusal(arrays) == "parameters missing or unknown: image/bias"


@pytest.mark.parametrize("name", ["image/extra", "image", "image/", "/weight", "image/weight/", "../image/weight"])
def test_an_unknown_parameter_is_named(name: str) -> None:
    arrays = trained("image") | {name: np.zeros(2, dtype=np.float32)}
    assert refusal(arrays) == f"parameters missing or unknown: {name}"


def test_the_name_of_an_unknown_parameter_is_no_writing_on_the_wall() -> None:
    # It is the site's own, and read on the coordinator's terminal.
    reason = refusal(trained("image") | {"image/\x1b[2J\nx" + "y" * 10_000: np.zeros(2, dtype=np.float32)})
    assert reason.startswith("parameters missing or unknown: image/ [2J xyyy")
    assert len(reason) < 200


def test_an_unknown_group_is_refused() -> None:
    assert "missing or unknown: prompt/weight" in refusal({"prompt/weight": np.zeros(2, dtype=np.float32)})


def test_many_faults_are_told_briefly() -> None:
    arrays = trained("image") | {f"image/x{n}": np.zeros(1, dtype=np.float32) for n in range(1000)}
    assert refusal(arrays) == "parameters missing or unknown: image/x0, image/x1, image/x10"


def test_nothing_is_no_update() -> None:
    assert refusal({}, {}) == "it counts patients for [] but sends []"
    assert refusal({}, {"image": 5}) == "it counts patients for ['image'] but sends []"


def test_counts_belong_to_the_groups_that_were_sent() -> None:
    both = trained("image", "clinical")
    assert "counts patients for ['image'] but sends ['clinical', 'image']" in refusal(both, {"image": 5})
    assert "sends ['image']" in refusal(trained("image"), {"image": 5, "clinical": 5})


@pytest.mark.parametrize("patients", [0, -1, -(10**9)])
def test_a_group_trained_on_nobody_is_refused(patients: int) -> None:
    assert refusal(trained("image"), {"image": patients}) == f"group image was trained on {patients} patients"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda a: a.astype(np.float16), "F16(2, 3)"),
        (lambda a: a.T.copy(), "F32(3, 2)"),
        (lambda a: a.ravel(), "F32(6,)"),
        (lambda a: a[:1], "F32(1, 3)"),  # would broadcast
        (lambda a: a[:0], "F32(0, 3)"),
        (lambda a: a[None], "F32(1, 2, 3)"),
    ],
)
def test_another_type_or_shape_is_refused(change: Callable[[np.ndarray], np.ndarray], found: str) -> None:
    arrays = trained("image")
    arrays["image/weight"] = change(arrays["image/weight"])
    assert refusal(arrays) == f"image/weight is {found}, should be F32(2, 3)"


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.bool_])
def test_a_type_that_never_travels_is_refused(kind: type) -> None:
    arrays = trained("image")
    arrays["image/weight"] = arrays["image/weight"].astype(kind)
    assert refusal(arrays).startswith("its arrays are not readable: array 'image/weight' is of type ")


def test_the_encoding_is_the_one_that_was_asked_for() -> None:
    half = {name: array.astype(np.float16) for name, array in trained("image").items()}
    asked = ExchangeSection(encoding="float16")
    check(half, exchange=asked)
    check(trained("image"), exchange=asked)  # small arrays may travel as they are
    assert "should be I8" in refusal(half, exchange=ExchangeSection(encoding="int8"), metadata={CHANGES: "true"})


def test_changes_are_sent_where_they_were_asked_for() -> None:
    changes = ExchangeSection(changes_only=True)
    check(trained("image"), exchange=changes, metadata={CHANGES: "true"})
    assert refusal(trained("image"), exchange=changes) == "it holds weights, not changes"
    assert refusal(trained("image"), metadata={CHANGES: "true"}) == "it holds changes, not weights"


def test_control_variates_come_where_they_were_asked_for() -> None:
    arrays = trained("image")
    with_control = arrays | {CONTROL + "image/bias": np.ones(2, dtype=np.float32)}
    check(with_control, control=True)
    check(arrays, control=True)
    assert "missing or unknown: control:image/bias" in refusal(with_control)
    of_others = arrays | {CONTROL + "clinical/weight": np.ones(4, dtype=np.float32)}
    assert "missing or unknown: control:clinical/weight" in refusal(of_others, control=True)
    misshapen = arrays | {CONTROL + "image/bias": np.ones(3, dtype=np.float32)}
    assert refusal(misshapen, control=True) == "control:image/bias is F32(3,), should be F32(2,)"


def test_the_largest_finite_values_are_finite() -> None:
    arrays = trained("image")
    arrays["image/weight"][:] = np.finfo(np.float32).max
    check(arrays)  # in float32 the squares would overflow
    assert "norm" in refusal(arrays, max_norm=1e6)


def test_the_norm_is_of_the_whole_change() -> None:
    check(trained("image"), max_norm=5.0)
    arrays = trained("image", "clinical")  # 5 and 12 make 13
    check(arrays, max_norm=13.001)
    assert refusal(arrays, max_norm=12.9) == "its change has norm 13, the limit is 12.9"


def test_what_the_hospitals_agreed_on_is_sent_by_nobody() -> None:
    arrays = trained("image") | {"standard/mean": np.array([6], dtype=np.float32)}
    assert refusal(arrays) == "it sends group standard, which holds what the hospitals agreed on and nobody trains"
    arrays["standard/mean"] = REFERENCE["standard/mean"].copy()  # unchanged as well
    assert "sends group standard" in refusal(arrays)


def test_a_clinical_group_of_a_site_without_clinical_data_is_refused() -> None:
    without = replace(ENTITLED, with_clinical=0)
    check(trained("image", "norm"), entitled=without)
    assert refusal(trained("image", "clinical"), entitled=without) == (
        "it sends group clinical, which only patients with clinical data train, and described none"
    )


def test_counts_above_what_was_described_are_refused() -> None:
    assert refusal(trained("image", "clinical"), {"image": 40, "clinical": 13}) == (
        "group clinical was trained on 13 patients with clinical data, it described 12"
    )
    assert refusal(trained("image"), {"image": 41}) == "group image was trained on 41 patients, it described 40"


@pytest.mark.parametrize("group", ["image", "clinical", "norm"])
def test_a_group_that_was_not_trained_is_refused(group: str) -> None:
    arrays = trained("image", "clinical", "norm")
    arrays |= {name: array.copy() for name, array in REFERENCE.items() if name.startswith(group)}
    assert refusal(arrays) == f"group {group} is that of the global model: it was not trained"


def test_one_number_that_moved_is_training() -> None:
    arrays = trained("image") | {"clinical/weight": REFERENCE["clinical/weight"].copy()}
    arrays["clinical/weight"][3] = np.nextafter(np.float32(1), np.float32(2))
    check(arrays)
