"""Every reason for which an update does not count."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.checks import Entitled, check_update
from fedpath.core.exchange.messages import Metrics, Update
from fedpath.core.exchange.wire import Arrays, hash_arrays

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
) -> None:
    if patients is None:
        patients = {name.partition("/")[0]: 10 for name in arrays}
    header = Update(round=round_, base=base, patients=patients, training_loss=0.5, validation=Metrics(), seconds=1.0)
    check_update("B", header, arrays, reference=REFERENCE, round_=2, base=BASE, entitled=entitled, max_norm=max_norm)


def refusal(arrays: Arrays, patients: dict[str, int] | None = None, **changes: int | str | float | Entitled) -> str:
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
        (lambda a: a.astype(np.float64), "float64(2, 3)"),
        (lambda a: a.astype(np.float16), "float16(2, 3)"),
        (lambda a: a.astype(np.int32), "int32(2, 3)"),
        (lambda a: a.astype(np.complex64), "complex64(2, 3)"),
        (lambda a: a.T, "float32(3, 2)"),
        (lambda a: a.ravel(), "float32(6,)"),
        (lambda a: a[:1], "float32(1, 3)"),  # would broadcast
        (lambda a: a[:0], "float32(0, 3)"),
        (lambda a: a[None], "float32(1, 2, 3)"),
    ],
)
def test_another_type_or_shape_is_refused(change: Callable[[np.ndarray], np.ndarray], found: str) -> None:
    arrays = trained("image")
    arrays["image/weight"] = change(arrays["image/weight"])
    assert refusal(arrays) == f"image/weight is {found}, should be float32(2, 3)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["image/weight", "image/bias"])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    arrays = trained("image")
    arrays[name].flat[-1] = value
    assert refusal(arrays) == f"{name} holds NaN or infinite values"


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


def test_checking_changes_nothing() -> None:
    arrays = trained("image")
    before = hash_arrays(arrays)
    check(arrays, max_norm=100)
    assert (hash_arrays(arrays), hash_arrays(REFERENCE)) == (before, BASE)
