"""Orders and answers: each comes back as it went, and nothing hostile is taken for one."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedpath.core.clinical.standard import ClinicalStatistics, FieldStatistics
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Description,
    Evaluate,
    Evaluation,
    Finish,
    Metrics,
    Order,
    Receipt,
    Refusal,
    Refuse,
    RunFacts,
    Train,
    Update,
    decode_answer,
    decode_order,
    encode,
)
from fedpath.core.exchange.wire import pack

HASH = "0123456789abcdef" * 4
FACTS = RunFacts(
    federation="lung",
    run="20260101-120000",
    seed=3,
    labels=["normal", "tumour"],
    features=FeaturesSection(encoder="e", width=4, mpp=0.5, patch_px=128),
    model=ModelSection(name="acmil", options={"inner": 8, "mask_ratio": 0.5, "input_norm": "layer", "dropout": None}),
)
# The order of the fields is that of a record's entries: b before a must stay so.
CLINICAL = ClinicalSchema.model_validate(
    {
        "fields": {
            "b": {"type": "number", "unit": "mm", "minimum": 0.0, "maximum": 0.1, "outcome_derived": False},
            "a": {"type": "category", "vocabulary": ["x", "y", "z"], "outcome_derived": False},
            "c": {"type": "binary", "positive": "1", "negative": "0", "outcome_derived": False},
        }
    }
)
TRAIN = Train(
    facts=FACTS.model_copy(update={"clinical": CLINICAL}),
    round=2,
    rounds=3,
    base=HASH,
    local_epochs=1,
    learning_rate=1e-3,
    weight_decay=0.0,
    class_weights=True,
)
METRICS = Metrics(loss=0.123456789012345, auc=0.5, balanced_accuracy=1.0, macro_f1=0.0, slides=5, patients=3)
UPDATE = Update(round=2, base=HASH, patients={"image": 12}, training_loss=1 / 3, validation=METRICS, seconds=1.5)
DESCRIPTION = Description(
    contract=FeatureContract(encoder="e", encoder_sha256=HASH, width=4, mpp=None, patch_px=None, transform="t"),
    patients={"train": 12, "validation": 3, "test": 0},
    slides={"train": 20, "validation": 4, "test": 0},
    version="0.1.0",
    clinical=ClinicalStatistics(
        patients=11,
        fields={
            "age": FieldStatistics(count=9, sum=1 / 3, sum_squares=2 / 3),
            "er": FieldStatistics(count=8, words=[3, 5]),
        },
    ),
)
ORDERS: list[Order] = [
    Describe(facts=FACTS),
    TRAIN,
    Evaluate(facts=FACTS, round=0, base=HASH, split="test"),
    Finish(facts=FACTS, base=HASH, best_round=0),
    Refuse(facts=FACTS, reason="other encoder"),
]
ANSWERS: list[Answer] = [
    DESCRIPTION,
    UPDATE,
    Evaluation(round=2, base=HASH, metrics=Metrics()),
    Receipt(),
    Refusal(reason="no"),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_an_order_comes_back(order: Order) -> None:
    arrays = {"image/w": np.arange(3, dtype=np.float32)}
    back, came = decode_order(encode(order, arrays))
    assert back == order
    assert type(back) is type(order)
    assert back.model_dump_json() == order.model_dump_json()
    assert came["image/w"].tolist() == [0, 1, 2]
    assert decode_order(encode(order)) == (order, {})


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.kind)
def test_an_answer_comes_back(answer: Answer) -> None:
    assert decode_answer(encode(answer)) == (answer, {})


def test_an_order_is_no_answer_and_an_answer_no_order() -> None:
    for order in ORDERS:
        with pytest.raises(RefusedError, match="message header"):
            decode_answer(encode(order))
    for answer in ANSWERS:
        with pytest.raises(RefusedError, match="message header"):
            decode_order(encode(answer))


def changed(message: Order | Answer, path: str, value: Any) -> bytes:
    """The message with the value at a dotted path replaced, as a stranger might send it."""
    content = json.loads(message.model_dump_json())
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    return pack(json.dumps(content))  # json.dumps writes NaN and Infinity, as strangers do


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "execute"),
        ("kind", None),
        ("code", "import os"),
        ("facts.extra", 1),
        ("facts.run", "../../etc/cron.d/x"),
        ("facts.run", "run/x"),
        ("facts.run", "."),
        ("facts.run", "a\n"),
        ("facts.run", "a" * 65),
        ("facts.run", ""),
        ("facts.federation", "/etc"),
        ("facts.federation", "lung\x00"),
        ("facts.seed", -1),
        ("facts.seed", 2**32),
        ("facts.seed", NAN),
        ("facts.seed", 1.5),
        ("facts.labels", ["one"]),
        ("facts.labels", [f"{n}" for n in range(1001)]),
        ("facts.labels", ["same", "same"]),
        ("facts.labels", {"a": 1}),
        ("facts.features.width", 0),
        ("facts.features.width", 10**9),
        ("facts.features.width", "4"),
        ("facts.features.mpp", NAN),
        ("facts.features.mpp", -0.5),
        ("facts.model.name", 3),
        ("round", 0),
        ("round", -1),
        ("round", NAN),
        ("round", 4),  # of 3: beyond the schedule
        ("rounds", 0),
        ("facts.clinical", {}),
        ("facts.clinical.fields", {}),
        ("facts.clinical.fields.a.type", "number"),
        ("facts.clinical.fields.b.maximum", 0.0),
        ("facts.clinical.fields.b.maximum", NAN),
        ("facts.clinical.fields.b.outcome_derived", True),  # the hospital refuses it too
        ("facts.clinical.fields.a.vocabulary", ["one"]),
        ("facts.clinical.fields.c.negative", "1"),
        ("facts.clinical.rows", []),
        ("base", "abc"),
        ("base", HASH.upper()),
        ("base", HASH + "\n"),
        ("local_epochs", 0),
        ("local_epochs", INF),
        ("learning_rate", NAN),
        ("learning_rate", INF),
        ("learning_rate", 0),
        ("weight_decay", -1),
        ("weight_decay", NAN),
        ("class_weights", "yes"),
        ("class_weights", 1),
    ],
)
def test_a_hostile_order_is_refused(path: str, value: Any) -> None:
    with pytest.raises(RefusedError, match="message header") as caught:
        decode_order(changed(TRAIN, path, value))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patients", {"image": NAN}),
        ("patients", {"image": 1.5}),
        ("patients", {"image": "12"}),
        ("patients", {"image": True}),
        ("patients", {"image": 10**40}),  # overflows float32: the mean would be NaN for all
        ("patients", [12]),
        ("training_loss", NAN),
        ("training_loss", INF),
        ("seconds", NAN),
        ("seconds", -1),
        ("validation.auc", 1.5),
        ("validation.auc", -1),
        ("validation.auc", NAN),
        ("validation.loss", INF),
        ("validation.macro_f1", 2),
        ("validation.balanced_accuracy", -0.1),
        ("validation.patients", -1),
        ("validation.patients", 10**40),
        ("validation.slides", NAN),
        ("validation.patient_ids", ["p1"]),
        ("slides", ["s1"]),
        ("base", ""),
    ],
)
def test_a_hostile_update_is_refused(path: str, value: Any) -> None:
    with pytest.raises(RefusedError, match="message header"):
        decode_answer(changed(UPDATE, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patients", {"training": 3}),
        ("patients.train", -1),
        ("patients.train", NAN),
        ("contract.width", "4"),
        ("contract.width", -4),
        ("contract.mpp", NAN),
        ("contract.path", "/data"),
        ("contract.encoder", "e" * 1001),
        ("version", "v" * 1001),
        ("clinical.patients", 0),
        ("clinical.patients", 10**40),
        ("clinical.rows", [[54.0]]),
        ("clinical.fields.age.count", -1),
        ("clinical.fields.age.sum", NAN),
        ("clinical.fields.age.sum_squares", INF),
        ("clinical.fields.er.words", [-1, 9]),
        ("clinical.fields.er.words", ["x", "y"]),
    ],
)
def test_a_hostile_description_is_refused(path: str, value: Any) -> None:
    with pytest.raises(RefusedError, match="message header"):
        decode_answer(changed(DESCRIPTION, path, value))


@pytest.mark.parametrize("header", ["", "{", "[]", "null", "3", "{}", '{"kind": "train"}', "[" * 5000, '"' + "x" * 99])
def test_a_header_that_is_no_object_is_refused(header: str) -> None:
    for decode in (decode_order, decode_answer):
        with pytest.raises(RefusedError):
            decode(pack(header))


def test_a_reason_cannot_play_with_a_terminal() -> None:
    # Reasons are printed on the other side: no line breaks, no escape sequences.
    hostile = "no\n\x1b[2Jremedy: send\r\x07 money\x9b1m"
    for back in (
        decode_answer(changed(Refusal(reason="x"), "reason", hostile))[0],
        decode_order(changed(Refuse(facts=FACTS, reason="x"), "reason", hostile))[0],
        Refusal(reason=hostile),
    ):
        assert isinstance(back, Refusal | Refuse)
        assert back.reason == "no  [2Jremedy: send   money 1m"
        assert back.reason.isprintable()
    with pytest.raises(RefusedError):
        decode_answer(changed(Refusal(reason="x"), "reason", "x" * 2001))


@pytest.mark.parametrize("path", ["patients", "clinical.fields"])
def test_nor_can_a_name_of_a_sites_own_making(path: str) -> None:
    # Where a fault is, is said with the names on the way there, and these are the other side's.
    hostile, message = "\n\x1b[2Jremedy: send money" + "x" * 10_000, UPDATE if path == "patients" else DESCRIPTION
    with pytest.raises(RefusedError) as caught:
        decode_answer(changed(message, path, {hostile: 10**12}))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


def test_a_message_is_made_with_the_same_care() -> None:
    with pytest.raises(ValidationError):
        Metrics(auc=NAN)
    with pytest.raises(ValidationError):
        Update(round=1, base=HASH, patients={"image": 1}, training_loss=NAN, validation=METRICS, seconds=0)
