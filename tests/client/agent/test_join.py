"""What leaves when something goes wrong at a hospital, and what is written down about it."""

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedpath.client.agent.app import build_client_app
from fedpath.client.agent.flower import FleetConnection
from fedpath.client.agent.join import _in_words, _Site, join
from fedpath.client.agent.transfer import RunOverError
from fedpath.client.agent.worker import Worker
from fedpath.client.audit import AuditLog, verify
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.site import DataSection, PolicySection, SiteSection
from fedpath.core.errors import ConfigError, DataError, RefusedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Encoded,
    Finish,
    Metrics,
    Order,
    Receipt,
    Refusal,
    Refuse,
    RunFacts,
    Update,
    decode_answer,
    encode,
)
from fedpath.core.exchange.parcel import LARGE
from fedpath.core.exchange.wire import BLOB, Apart, Arrays, apart_from, hash_arrays, pack
from fedpath.core.models import build_model
from fedpath.core.training.engines.launch import TrainingProcessError
from fedpath.server.provision import provision

pytestmark = pytest.mark.usefixtures("flower_identity")

FACTS = RunFacts(
    federation="lung",
    run="r1",
    seed=0,
    labels=["no", "yes"],
    features=FeaturesSection(encoder="e", width=4),
    model=ModelSection(),
)


@dataclass
class Wire:
    """Stands for the connection: keeps what was handed to it, and what the audit log held at that moment."""

    audit: Path
    node_id: int = 2
    sent: list[bytes] = field(default_factory=list)
    noted: list[int] = field(default_factory=list)
    files: list[tuple[bytes, Apart]] = field(default_factory=list)

    @property
    def answer_file(self) -> Path:
        return self.audit.with_name("answer")

    def fetch(self, apart: Apart) -> Arrays:
        raise RunOverError

    def send(self, file: Path, apart: Apart) -> None:
        self.files.append((file.read_bytes(), apart))
        self.noted.append(len(verify(self.audit)))

    def answer(self, reply: Message, seconds: float) -> None:
        assert seconds >= 0
        self.sent.append(reply.content.array_records[BLOB][BLOB].data)
        self.noted.append(len(verify(self.audit)))


@dataclass
class Hospital:
    site: _Site
    wire: Wire
    heard: list[Event]
    folder: Path

    def receive(self, content: bytes) -> None:
        array = Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)
        message = Message(RecordDict({BLOB: ArrayRecord({BLOB: array})}), 1, "query")
        self.site._answer(cast(FleetConnection, self.wire), message)

    def order(self, order: Order) -> None:
        self.receive(encode(order))

    def refusal(self) -> str:
        (content,) = self.wire.sent
        answer, arrays = decode_answer(content)
        assert isinstance(answer, Refusal)
        assert arrays == {}
        assert self.wire.noted == [1]  # written down before it left
        (record,) = verify(self.wire.audit)
        assert (record.sha256, record.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert record.kind == "refusal"
        return answer.reason


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """A hospital whose cohort names a slide without features."""
    (tmp_path / "manifest.csv").write_text("patient_id,slide_id,label,split\nMueller,secret-slide,no,train\n")
    heard: list[Event] = []
    config = SiteConfig(
        site=SiteSection(name="A"),
        data=DataSection(manifest=tmp_path / "manifest.csv", features=tmp_path / "features"),
        policy=PolicySection(models=["acmil"]),
        state=tmp_path,
    )
    events = EventLog(None, heard.append)
    audit = tmp_path / "audit.jsonl"
    wire = Wire(audit)
    site = _Site(Worker(config, federation="lung", events=events), AuditLog(audit), "host:8443", events, wire)
    return Hospital(site, wire, heard, tmp_path)


def test_what_is_wrong_with_the_data_stays_here(hospital: Hospital) -> None:
    with pytest.raises(DataError, match=r"secret-slide\.h5"):  # the hospital's own staff reads it all
        hospital.order(Describe(facts=FACTS))
    assert hospital.refusal() == "the site could not do it; its own log says why"
    (content,) = hospital.wire.sent
    for secret in (b"secret", b"Mueller", str(hospital.folder).encode()):
        assert secret not in content
    assert "secret" not in hospital.wire.audit.read_text()


def test_a_process_that_trains_and_is_lost_ends_neither_the_agent_nor_tells_what_it_printed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(worker: Worker, facts: RunFacts) -> Answer:
        raise TrainingProcessError(
            "DeepSpeed's process 1 was killed by SIGKILL; its last line: Mueller",
            remedy="more memory",
            how="was killed by SIGKILL",
        )

    monkeypatch.setattr(Worker, "_describe", lost)
    hospital.order(Describe(facts=FACTS))
    assert hospital.refusal() == "the process that trains was killed by SIGKILL, twice; the site's own log says more"
    assert not hospital.site.outcome.finished
    assert hospital.site.outcome.refused is None
    (failed,) = [event.values for event in hospital.heard if event.kind == "training_failed"]
    assert "Mueller" in failed["reason"]
    assert "Mueller" not in hospital.wire.audit.read_text()


def test_what_is_wrong_with_the_order_is_said(hospital: Hospital) -> None:
    facts = FACTS.model_copy(update={"model": ModelSection(name="other")})
    with pytest.raises(RefusedError):
        hospital.order(Describe(facts=facts))
    assert hospital.refusal() == "site A refuses: model 'other' is not among those that may be trained here"
    (record,) = verify(hospital.wire.audit)
    assert record.holds == f"a refusal: {hospital.refusal()}"
    assert (record.run, record.to) == ("r1", "host:8443")


def test_what_is_no_order_is_refused_and_noted(hospital: Hospital) -> None:
    with pytest.raises(RefusedError):
        hospital.receive(b"import os")
    assert "is not readable" in hospital.refusal()


def test_a_refusal_fits_its_limit(hospital: Hospital) -> None:
    facts = FACTS.model_copy(update={"model": ModelSection(name="x" * 5000)})
    with pytest.raises(RefusedError):
        hospital.order(Describe(facts=facts))
    assert len(hospital.refusal()) == 2000


def test_being_kept_out_ends_the_sites_part(hospital: Hospital) -> None:
    hospital.order(Refuse(facts=FACTS, reason="other encoder"))
    assert hospital.site.outcome.refused == "other encoder"
    assert not hospital.site.outcome.finished
    assert hospital.wire.noted == [1]
    told = [(event.kind, event.values.get("phase") or event.values.get("order")) for event in hospital.heard]
    assert told == [("order", "refuse"), ("refused", None), ("phase", "sending"), ("sent", None)]


def test_the_end_of_a_stage_is_not_the_end_of_the_sites_part(hospital: Hospital) -> None:
    arrays = to_arrays(build_model("acmil", width=4, n_classes=2, seed=0))
    for more in (True, False):
        assert not hospital.site.outcome.finished
        order = Finish(facts=FACTS, base=hash_arrays(arrays), best_round=1, more=more)
        hospital.receive(encode(order, arrays))
    assert hospital.site.outcome.finished
    assert [record.kind for record in verify(hospital.wire.audit)] == ["receipt", "receipt"]


def test_changes_of_a_control_variate_are_said_in_words() -> None:
    update = Update(round=1, base="0" * 64, patients={"image": 3}, training_loss=0.1, validation=Metrics(), seconds=1.0)
    weights = {"image/a": np.zeros((2, 3), np.float32), "clinical/b": np.zeros(4, np.float32)}
    rest = "patient counts, training loss, validation figures"
    assert _in_words(update, weights) == f"10 parameters (clinical, image) as float32 weights, {rest}"
    control = {"control:image/a": np.zeros((2, 3), np.float32)}
    assert _in_words(update, weights | control) == (
        "10 parameters (clinical, image) as float32 weights, "
        f"the change of the mean gradient of 6 of them (SCAFFOLD), {rest}"
    )


def test_a_file_of_arrays_is_written_down_and_sent_before_the_answer_that_speaks_of_it(hospital: Hospital) -> None:
    trained = {"image/w": np.ones(LARGE // 4, np.float32)}
    hospital.site._app = build_client_app(
        lambda order, arrays: (Receipt(), trained),
        hospital.site._note_arrival,
        hospital.site._note_departure,
        hospital.wire,
    )
    hospital.order(Describe(facts=FACTS))
    ((file, apart),) = hospital.wire.files
    assert (hashlib.sha256(file).hexdigest(), len(file)) == (apart.sha256, apart.size)
    (content,) = hospital.wire.sent
    assert apart_from(content) == apart
    assert hospital.wire.noted == [2, 2]  # both lines were there before the file left
    lines = [(record.kind, record.size, record.sha256) for record in verify(hospital.wire.audit)]
    assert lines == [
        ("arrays", apart.size, apart.sha256),
        ("receipt", len(content), hashlib.sha256(content).hexdigest()),
    ]
    (sent,) = [event for event in hospital.heard if event.kind == "sent"]
    assert sent.values["bytes"] == len(content) + apart.size


def test_an_order_whose_arrays_are_not_there_any_more_is_dropped_without_a_word(hospital: Hospital) -> None:
    with pytest.raises(RunOverError):
        hospital.receive(pack(Describe(facts=FACTS).model_dump_json(), apart=Apart("0" * 64, 5)))
    assert hospital.wire.sent == []


def test_what_leaves_after_encoding_is_said_in_words() -> None:
    contract = FeatureContract(encoder="e", encoder_sha256="0", width=4, mpp=0.5, patch_px=128, transform="t")
    encoded = Encoded(contract=contract, slides=12, seconds=3.0)
    assert _in_words(encoded, {}) == "how 12 slides were encoded again, and how long it took"


def test_a_kit_of_another_site_is_found_before_anything_is_connected(tmp_path: Path) -> None:
    federation = FederationConfig.model_validate(
        {
            "federation": {"name": "lung", "sites": ["B"]},
            "server": {"address": "localhost:1"},
            "task": {"labels": ["no", "yes"]},
            "features": {"encoder": "e", "width": 4},
        }
    )
    (kit,) = provision(federation, tmp_path).new_kits
    config = SiteConfig.model_validate({"site": {"name": "A"}, "data": {"manifest": "m", "features": "f"}})
    with pytest.raises(ConfigError, match=r"the kit is for site 'B', site\.toml is for 'A'"):
        join(config, kit, EventLog(), threading.Event())
