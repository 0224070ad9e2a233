"""From record to vector: standardised numbers, coded words, the state of what is missing, what is agreed on."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from literal_clinical import MISSING_ENTRIES, N_ENTRIES, SCHEMA, STANDARD, TYPICAL, literal_vector, record

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.models.multimodal.coder import ClinicalCoder


def make(standard: Standard | None = STANDARD) -> ClinicalCoder:
    coder = ClinicalCoder(SCHEMA)
    if standard is not None:
        coder.use_standard(standard)
    return coder


def test_every_combination_of_what_is_known() -> None:
    coder = make().double()
    for values in product((None, 61.0), (None, 0, 1, 2), (None, 0, 1), (None, 31.0)):
        assert torch.equal(coder(record(*values)), literal_vector(*values))


def test_a_missing_field_is_a_state_and_no_value() -> None:
    coder, nothing = make(), ClinicalRecord(torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.bool))
    vector_E = coder(nothing)
    assert vector_E.nonzero().flatten().tolist() == sorted(MISSING_ENTRIES.values())
    assert vector_E.sum() == 4
    # The mean patient's value is not the missing one.
    assert not torch.equal(coder(record(60.0, None, None, None)), vector_E)


def test_a_number_that_nobody_reported_is_read_as_missing() -> None:
    coder = make(Standard(20, mean={"age": 60.0}, sd={"age": 8.0}, shares=STANDARD.shares))
    assert torch.equal(coder(record(61.0, 1, 1, 31.0)), literal_vector(61.0, 1, 1, None).float())
    assert not coder.can_read(record(None, None, None, 31.0))
    assert coder.can_read(record(None, None, 0, 31.0))
    assert coder.known(record(None, None, 0, 31.0)).tolist() == [False] * 6 + [True] * 3 + [False] * 2


def test_a_field_in_which_all_training_patients_agree_is_not_read() -> None:
    coder = make(Standard(20, mean={"age": 60.0, "size": 5.0}, sd={"age": 0.0, "size": 1.0}))
    for age in (60.0, 900_000.0):
        assert coder(record(age, None, None, 6.0)).equal(coder(record(None, None, None, 6.0)))


def test_nobody_has_clinical_data_until_it_is_agreed_on() -> None:
    known = record(61.0, 1, 1, 31.0)
    assert not make(None).can_read(known)
    assert not make(Standard(0)).can_read(known)
    assert make().can_read(known)


def test_what_is_missing_may_be_filled_instead() -> None:
    coder, fill_E = make().double(), torch.arange(N_ENTRIES, dtype=torch.float64)
    filled = coder(record(61.0, None, 0, None), fill_E).tolist()
    assert filled == [0.125, 0.0, 2, 3, 4, 5, 1, 0, 0, 9, 10]
    assert coder.typical_E.tolist() == list(TYPICAL)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (record(61.0, 1, 1), "3 fields, where the schema has 4"),
        (record(61.0, 1, 1, 31.0, 1.0), "5 fields, where the schema has 4"),
        (record(61.0), "1 fields, where the schema has 4"),
        (record(61.0, 3, 1, 31.0), "vocabulary"),
        (record(61.0, -1, 1, 31.0), "vocabulary"),
        (record(61.0, 1, 0.5, 31.0), "vocabulary"),
    ],
)
def test_a_record_of_another_schema_is_refused(wrong: ClinicalRecord, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()(wrong)


OTHER = Standard(30, mean={"age": 50.0, "size": 20.0}, sd={"age": 10.0, "size": 5.0})


@pytest.mark.parametrize("way", ["use_standard", "load_state_dict", "copy_", "float", "deepcopy", "inference"])
def test_what_is_agreed_on_anew_counts_at_once(way: str) -> None:
    """Whatever way it comes: what follows from the buffers is kept between records."""
    coder, known = make(), record(60.0, None, None, None)
    assert coder(known)[0] == 0
    match way:
        case "use_standard":
            coder.use_standard(OTHER)
        case "load_state_dict":
            coder.load_state_dict(make(OTHER).state_dict())
        case "copy_":
            for name, buffer in make(OTHER).state_dict().items():
                coder.state_dict()[name].copy_(buffer)
        case "float":
            coder.double().float().use_standard(OTHER)
        case "deepcopy":
            coder = deepcopy(coder)
            coder.use_standard(OTHER)
        case "inference":
            with torch.inference_mode():
                coder = make()
                assert coder(known)[0] == 0
                coder.use_standard(OTHER)
    assert coder(known)[0] == 1
    assert coder.can_read(known)


def test_the_vector_is_of_the_models_type_and_place() -> None:
    assert make()(record(61.0, 1, 1, 31.0)).dtype == torch.float32
    assert make().double()(record(61.0, 1, 1, 31.0)).dtype == torch.float64
    assert make()(record(61.0, 1, 1, 31.0)).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_same_vector() -> None:
    coder, known = make(), record(61.0, 1, None, 31.0)
    on_cpu = coder(known)
    on_gpu = coder.to("cuda")(known)
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.cpu(), on_cpu)
    assert coder(known, coder.typical_E).device.type == coder.known(known).device.type == "cuda"
    assert torch.equal(coder.to("cpu")(known), on_cpu)
