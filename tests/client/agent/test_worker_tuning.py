"""One hospital's side of a pipeline, on drawn slides; what it cannot do is said in words."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from slide_files import break_tile
from slide_hospitals import ENCODER, LABELS, MPP, PATCH_PX, write_slide_hospital

from fedpath.client.agent.worker import Worker
from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.tuning.choose import choose
from fedpath.client.tuning.memory import BUDGET_FILE
from fedpath.core.bags import read_bag, read_meta
from fedpath.core.cohort import load_cohort, load_examples
from fedpath.core.config import SiteConfig, load_site
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import Patches, TuningSection
from fedpath.core.encoders.registry import build_encoder, encoder_sha256, info_of, load_encoder
from fedpath.core.errors import ConfigError, DataError, RefusedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.exchange.messages import (
    Describe,
    Description,
    Encode,
    Encoded,
    Evaluate,
    Evaluation,
    Finish,
    Metrics,
    Order,
    Receipt,
    RunFacts,
    StageFacts,
    Train,
    Update,
)
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.files import sha256_file
from fedpath.core.models import build_model, load_model
from fedpath.core.tuning.build import build_tuner, tuned_encoder

BASE = encoder_sha256(build_encoder(ENCODER))
TUNING = TuningSection(patches=Patches(most=16, least=2), encoder_learning_rate=1e-3)
HEAD = ModelSection(name="abmil", options={"inner": 8, "attention": 4})
FEATURES = FeaturesSection(
    encoder=ENCODER, width=info_of(ENCODER).width, mpp=MPP, patch_px=PATCH_PX, encoder_sha256=BASE
)


def facts(name: str, kind: Any, model: ModelSection, *, features: FeaturesSection = FEATURES, **stage: Any) -> RunFacts:
    numbers = {"select": 1, "fine-tune": 2, "encode": 3, "train": 4}
    return RunFacts(
        federation="lung",
        run="r1",
        seed=3,
        labels=LABELS,
        features=features,
        model=model,
        stage=StageFacts(name=name, kind=kind, number=numbers[kind], of=4, **stage),
    )


SELECT = facts("pick", "select", ModelSection(name="vib", options={"inner": 8, "attention": 4}))
TUNE = facts("tune", "fine-tune", HEAD, selector="pick", tuning=TUNING, encoder_sha256=BASE)


def tuned_facts(sha256: str) -> tuple[RunFacts, RunFacts]:
    """What the orders of the stages after fine-tuning say."""
    features = FEATURES.model_copy(update={"encoder_sha256": sha256})
    model = ModelSection(name="abmil", options={"inner": 8, "attention": 4})
    return (
        facts("again", "encode", model, features=features, tuned="tune", encoder_sha256=sha256),
        facts("final", "train", model, features=features, encoded="again"),
    )


def first_arrays(run: RunFacts) -> Arrays:
    """The arrays that round 1 of a stage starts from, as a coordinator makes them."""
    assert run.stage is not None
    if run.stage.tuning is not None:
        return to_arrays(
            build_tuner(
                encoder=build_encoder(ENCODER), encoder_name=ENCODER, head=run.model, tuning=run.stage.tuning,
                n_classes=2, seed=run.seed, learning_rate=1e-2,
            )
        )  # fmt: skip
    return to_arrays(
        build_model(run.model.name, width=run.features.width, n_classes=2, options=run.model.options, seed=run.seed)
    )


def train_order(run: RunFacts, arrays: Arrays, round_: int = 1, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "facts": run, "round": round_, "rounds": 2, "base": hash_arrays(arrays), "local_epochs": 1,
        "learning_rate": 1e-2, "weight_decay": 1e-3, "class_weights": True,
    }  # fmt: skip
    return Train(**values | changes)


def finish(run: RunFacts, arrays: Arrays, *, more: bool = True) -> Finish:
    return Finish(facts=run, base=hash_arrays(arrays), best_round=1, more=more)


@dataclass
class Hospital:
    """A hospital's folder and what its agent said."""

    folder: Path
    heard: list[Event] = field(default_factory=list)

    def worker(self, **changes: Any) -> Worker:
        """A fresh agent."""
        config = self.config().model_copy(update=changes)
        return Worker(config, federation="lung", events=EventLog(None, self.heard.append))

    def config(self) -> SiteConfig:
        return load_site(self.folder / "site.toml")

    def carry_out(self, order: Order, arrays: Arrays | None = None, **changes: Any) -> tuple[Any, Arrays]:
        """What a fresh agent answers."""
        return self.worker(**changes).carry_out(order, arrays or {})

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [event.values for event in self.heard if event.kind == kind]

    @property
    def state(self) -> Path:
        return self.folder / "state" / "r1"

    @property
    def pixels(self) -> dict[str, Path]:
        """Files with pixels, by slide."""
        return {path.parent.name: path for path in (self.state / "tune" / "patches").glob("*/*.npy")}


@pytest.fixture(scope="module")
def drawn_hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital that has the selector of a select stage, and nothing more."""
    folder = tmp_path_factory.mktemp("hospital")
    write_slide_hospital(folder, "A")
    hospital = Hospital(folder)
    arrays = first_arrays(SELECT)
    _, arrays = hospital.carry_out(train_order(SELECT, arrays), arrays)
    assert hospital.carry_out(finish(SELECT, arrays), arrays) == (Receipt(), {})
    return folder


@pytest.fixture
def hospital(drawn_hospital: Path, tmp_path: Path) -> Hospital:
    shutil.copytree(drawn_hospital, tmp_path / "A")
    return Hospital(tmp_path / "A")


def equal(one: tuple[Any, Arrays], other: tuple[Any, Arrays]) -> bool:
    """Whether two answers are the same, but for the time they took."""
    same = one[0].model_copy(update={"seconds": 0.0}) == other[0].model_copy(update={"seconds": 0.0})
    return same and hash_arrays(one[1]) == hash_arrays(other[1])


def test_a_whole_pipeline_at_one_hospital(hospital: Hospital) -> None:
    # Select is done: its model is the selector.
    selector, metadata = load_model(hospital.state / "pick" / "federated.safetensors")
    assert metadata["name"] == "vib"
    assert hospital.heard == []

    description, _ = hospital.carry_out(Describe(facts=TUNE))
    assert isinstance(description, Description)
    assert description.contract.encoder_sha256 == BASE
    assert hospital.pixels == {}  # nothing is read to describe

    # Fine-tune: what trains travels, and nothing else.
    arrays = first_arrays(TUNE)
    worker = hospital.worker()
    answer, trained = worker.carry_out(train_order(TUNE, arrays), arrays)
    assert isinstance(answer, Update)
    assert answer.patients == {"encoder": 4, "head": 4}
    assert {group_of(name) for name in trained} == {"encoder", "head"}
    assert trained.keys() == arrays.keys()
    assert answer.validation.patients == 2
    # Patches of training and validation patients only, and they are those that the selector ranks highest.
    assert sorted(hospital.pixels) == [f"slide-A-{number}" for number in range(6)]
    cohort = load_cohort(hospital.folder / "manifest.csv", labels=LABELS)
    for example in load_examples(cohort, hospital.folder / "features", "train", width=FEATURES.width):
        best = selector(example.bag).selection_N.argsort(descending=True)[:16].sort().values
        pixels = np.load(hospital.pixels[example.slide_id])
        with Slide(hospital.folder / "slides" / f"{example.slide_id}.tif") as slide:
            corners = example.bag.coords_N2[best].tolist()
            expected = np.stack([slide.read(x, y, mpp=MPP, size=PATCH_PX) for x, y in corners])
        assert np.array_equal(pixels, expected)
    (chosen,) = hospital.said("patches_chosen")
    assert chosen == {"patches": 16, "slides": 6, "smaller": 1}  # one slide has 12
    (read,) = hospital.said("patches_read")
    assert read["unreadable"] == 0
    assert read["bytes"] == sum(path.stat().st_size for path in hospital.pixels.values())

    # The same order gives the same bits: asked again, and of a fresh agent that finds all in its folders.
    for other in (worker, hospital.worker()):
        assert equal(other.carry_out(train_order(TUNE, arrays), arrays), (answer, trained))
    order = Evaluate(facts=TUNE, round=1, base=hash_arrays(trained), split="validation")
    figures, _ = hospital.carry_out(order, trained)
    assert isinstance(figures, Evaluation)
    assert figures.metrics.patients == 2
    # Test patients' slides are not looked at on the way.
    untold, _ = hospital.carry_out(order.model_copy(update={"split": "test"}), trained)
    assert untold.metrics == Metrics()
    assert "slide-A-6" not in hospital.pixels

    assert hospital.carry_out(finish(TUNE, trained), trained) == (Receipt(), {})
    assert hospital.pixels == {}
    kept_files = sorted(path.name for path in (hospital.state / "tune").iterdir())
    assert kept_files == ["encoder.safetensors", "head.safetensors", BUDGET_FILE]
    # The coordinator's hash of the tuned encoder is the hospital's.
    model = build_tuner(
        encoder=build_encoder(ENCODER), encoder_name=ENCODER, head=HEAD, tuning=TUNING, n_classes=2, seed=99,
        learning_rate=1.0,
    )  # fmt: skip
    load_arrays(model, trained)
    sha256 = encoder_sha256(tuned_encoder(model))
    kept, name = load_encoder(hospital.state / "tune" / "encoder.safetensors")
    assert (name, encoder_sha256(kept)) == (ENCODER, sha256)
    assert sha256 != BASE

    # Encode: new features at the same places.
    encode_facts, train_facts = tuned_facts(sha256)
    encoded, _ = hospital.carry_out(Encode(facts=encode_facts))
    assert isinstance(encoded, Encoded)
    assert encoded.slides == 8
    assert (encoded.contract.encoder_sha256, encoded.contract.patch_px) == (sha256, PATCH_PX)
    new, old = hospital.state / "again" / "features", hospital.folder / "features"
    assert sorted(path.name for path in new.glob("*.h5")) == sorted(path.name for path in old.glob("*.h5"))
    for path in old.glob("*.h5"):
        assert torch.equal(read_bag(new / path.name).coords_N2, read_bag(path).coords_N2)
        assert not torch.equal(read_bag(new / path.name).features_ND, read_bag(path).features_ND)
    made = {path: path.stat().st_mtime_ns for path in new.glob("*.h5")}
    again, _ = hospital.carry_out(Encode(facts=encode_facts))
    assert equal((again, {}), (encoded, {}))
    assert made == {path: path.stat().st_mtime_ns for path in new.glob("*.h5")}
    assert (hospital.said("encoded")[-1]["slides"], hospital.said("encoded")[-1]["already"]) == (0, 8)

    # Train: on the new features.
    description, _ = hospital.carry_out(Describe(facts=train_facts))
    assert description.contract.encoder_sha256 == sha256
    arrays = first_arrays(train_facts)
    answer, trained = hospital.carry_out(train_order(train_facts, arrays), arrays)
    shutil.rmtree(new)
    shutil.copytree(old, new)
    assert not equal(hospital.carry_out(train_order(train_facts, arrays), arrays), (answer, trained))
    hospital.carry_out(finish(train_facts, trained, more=False), trained)
    kept_model, _ = load_model(hospital.state / "final" / "federated.safetensors")
    assert hash_arrays(to_arrays(kept_model)) == hash_arrays(trained)
    assert [event["more"] for event in hospital.said("finished")] == [True, False]


def test_an_agent_that_was_killed_while_it_read_goes_on(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    expected = hospital.carry_out(train_order(TUNE, arrays), arrays)
    files = hospital.pixels
    before = {slide: path.stat().st_mtime_ns for slide, path in files.items()}
    files["slide-A-2"].unlink()  # the note beside it is written first
    (files["slide-A-3"].parent / ".half.npy.tmp").write_bytes(b"x")
    files["slide-A-3"].unlink()
    assert equal(hospital.carry_out(train_order(TUNE, arrays), arrays), expected)
    after = {slide: path.stat().st_mtime_ns for slide, path in hospital.pixels.items()}
    assert {slide for slide in before if before[slide] != after[slide]} == {"slide-A-2", "slide-A-3"}
    assert len(list(files["slide-A-3"].parent.iterdir())) == 2


def test_another_choice_of_patches_is_read_anew(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    hospital.carry_out(train_order(TUNE, arrays), arrays)
    fewer = TUNING.model_copy(update={"patches": Patches(most=5, least=2)})
    run = facts("tune", "fine-tune", HEAD, selector="pick", tuning=fewer, encoder_sha256=BASE)
    hospital.carry_out(train_order(run, arrays), arrays)
    assert {len(np.load(path)) for path in hospital.pixels.values()} == {5}
    assert len(hospital.pixels) == 6  # what was read before is gone


def test_patches_that_cannot_be_read_are_left_out_and_counted(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    slide = hospital.folder / "slides" / "slide-A-1.tif"
    break_tile(slide, 10, 10)
    slides, features = hospital.folder / "slides", hospital.folder / "features"
    encode_folder(slides, features, EncodeSettings(MPP, PATCH_PX), encoder=ENCODER)
    break_tile(slide, 300, 300)
    # The scanner's disk went on failing; the feature file is made to say that it was so when it was encoded.
    restate(hospital, "slide-A-1", slide_sha256=sha256_file(slide))
    answer, _ = hospital.carry_out(train_order(TUNE, arrays), arrays)
    assert answer.patients == {"encoder": 4, "head": 4}
    (read,) = hospital.said("patches_read")
    assert 0 < read["unreadable"] < 16
    assert len(np.load(hospital.pixels["slide-A-1"])) == 16 - read["unreadable"]
    assert equal(hospital.carry_out(train_order(TUNE, arrays), arrays), (answer, _))


def test_a_slide_of_which_no_patch_can_be_read(hospital: Hospital) -> None:
    slide = hospital.folder / "slides" / "slide-A-1.tif"
    for x in (10, 300):
        for y in (10, 300):
            break_tile(slide, x, y)
    restate(hospital, "slide-A-1", slide_sha256=sha256_file(slide))
    arrays = first_arrays(TUNE)
    with pytest.raises(DataError, match=r"none of the 16 chosen patches of slide 'slide-A-1' can be read"):
        hospital.carry_out(train_order(TUNE, arrays), arrays)


def restate(hospital: Hospital, slide_id: str, **attributes: Any) -> None:
    """Change what a feature file says of itself."""
    with h5py.File(hospital.folder / "features" / f"{slide_id}.h5", "a") as file:
        file.attrs.update(attributes)


def test_a_slide_that_moved_is_found_by_its_name(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    expected = hospital.carry_out(train_order(TUNE, arrays), arrays)
    shutil.rmtree(hospital.state / "tune")
    moved = hospital.folder / "slides" / "2026" / "slide-A-0.tif"
    moved.parent.mkdir()
    (hospital.folder / "slides" / "slide-A-0.tif").rename(moved)
    assert equal(hospital.carry_out(train_order(TUNE, arrays), arrays), expected)


@pytest.mark.parametrize("order", ["describe", "train", "encode"])
def test_a_slide_that_is_gone_is_named(hospital: Hospital, order: str) -> None:
    (hospital.folder / "slides" / "slide-A-4.tif").unlink()
    with pytest.raises(DataError, match=r"slides: slide 'slide-A-4' is not there \(") as caught:
        carry_out_some(hospital, order)
    assert "slides.folder in site.toml" in caught.value.remedy


def carry_out_some(hospital: Hospital, order: str, **changes: Any) -> None:
    """An order of a stage that reads slides."""
    arrays = first_arrays(TUNE)
    match order:
        case "describe":
            hospital.carry_out(Describe(facts=TUNE), **changes)
        case "train":
            hospital.carry_out(train_order(TUNE, arrays), arrays, **changes)
        case "encode":
            hospital.carry_out(finish(TUNE, arrays), arrays)
            hospital.carry_out(Encode(facts=tuned_facts(BASE)[0]), **changes)


def test_a_slide_that_changed_since_it_was_encoded_is_named_before_it_is_read(hospital: Hospital) -> None:
    slide = hospital.folder / "slides" / "slide-A-5.tif"
    with slide.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"slide 'slide-A-5' has changed since it was encoded \(put") as caught:
        carry_out_some(hospital, "train")
    assert "put back the slide" in caught.value.remedy
    assert "slide-A-5" not in hospital.pixels
    assert len(hospital.pixels) == 5  # what was read before it stays
    with pytest.raises(DataError, match=r"slide 'slide-A-5' has changed since it was encoded for the stages before"):
        carry_out_some(hospital, "encode")


def test_test_patients_slides_may_be_anything_until_they_are_encoded(hospital: Hospital) -> None:
    (hospital.folder / "slides" / "slide-A-7.tif").write_bytes(b"no slide")
    carry_out_some(hospital, "describe")
    carry_out_some(hospital, "train")
    with pytest.raises(DataError, match=r"slide-A-7.*not a slide OpenSlide can read"):
        carry_out_some(hospital, "encode")


@pytest.mark.parametrize("order", ["describe", "train", "encode"])
def test_a_hospital_without_slides_says_so(hospital: Hospital, order: str) -> None:
    with pytest.raises(RefusedError, match=r"site A refuses: .* reads slides, and its site\.toml names no folder"):
        carry_out_some(hospital, order, slides=None)


def test_feature_files_of_other_tools_do_not_tell_their_pixels(hospital: Hospital) -> None:
    path = hospital.folder / "features" / "slide-A-3.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((3, FEATURES.width), np.float32)
        file["coords"] = np.array([[0, 0], [64, 0], [128, 0]], np.int32)
    with pytest.raises(DataError, match=r"slide-A-3\.h5: made by another tool") as caught:
        carry_out_some(hospital, "describe")
    assert "fedpath slides encode" in caught.value.remedy


def test_a_missing_feature_file_is_named(hospital: Hospital) -> None:
    (hospital.folder / "features" / "slide-A-3.h5").unlink()
    with pytest.raises(DataError, match=r"slide-A-3\.h5: no feature file for slide 'slide-A-3'"):
        carry_out_some(hospital, "train")


@pytest.mark.parametrize("order", ["describe", "train"])
def test_other_weights_than_the_federations(hospital: Hospital, order: str) -> None:
    run = TUNE.model_copy(update={"stage": TUNE.stage.model_copy(update={"encoder_sha256": "f" * 64})})  # type: ignore[union-attr]
    arrays = first_arrays(TUNE)
    given: Order = Describe(facts=run) if order == "describe" else train_order(run, arrays)
    with pytest.raises(RefusedError, match=r"site A refuses: its features come from other weights .*ffffffffffff…"):
        hospital.carry_out(given, arrays)
    for number in range(8):
        restate(hospital, f"slide-A-{number}", encoder_sha256="f" * 64)
    with pytest.raises(RefusedError, match=rf"its weights of encoder '{ENCODER}' have hash {BASE[:12]}…, the fed"):
        hospital.carry_out(given, arrays)


def test_a_budget_that_no_plan_can_meet_leaves_with_the_smallest_that_would_do(hospital: Hospital) -> None:
    compute = hospital.config().compute.model_copy(update={"vram_gb": 1e-4})
    for order in ("describe", "train"):
        with pytest.raises(
            RefusedError, match=r"site A refuses: no plan fits 0\.0001 GB: .* needs \S+ GB at least"
        ) as e:
            carry_out_some(hospital, order, compute=compute)
        assert "compute.vram_gb" in e.value.remedy
        for secret in ("slide-A", "patient-A", str(hospital.folder)):
            assert secret not in e.value.message
    assert hospital.pixels == {}


def test_a_smaller_budget_takes_fewer_patches(hospital: Hospital) -> None:
    carry_out_some(hospital, "describe")
    (planned,) = hospital.said("memory_planned")
    assert planned["patches"] == 16
    smallest = smallest_budget(hospital)
    compute = hospital.config().compute.model_copy(update={"vram_gb": smallest})
    arrays = first_arrays(TUNE)
    hospital.carry_out(train_order(TUNE, arrays), arrays, compute=compute)
    taken = hospital.said("memory_planned")[-1]["patches"]
    assert 2 <= taken < 16
    assert {len(np.load(path)) for path in hospital.pixels.values()} == {taken}


def smallest_budget(hospital: Hospital) -> float:
    """GB, as the refusal says it."""
    compute = hospital.config().compute.model_copy(update={"vram_gb": 1e-4})
    with pytest.raises(RefusedError) as caught:
        carry_out_some(hospital, "describe", compute=compute)
    return float(caught.value.message.partition(" GB at least")[0].rpartition(" ")[2])


def test_a_restarted_agent_plans_for_the_budget_it_had(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU and a stated budget, what is free decides; that differs from one moment to the next."""
    arrays = first_arrays(TUNE)
    expected = hospital.carry_out(train_order(TUNE, arrays), arrays)
    with monkeypatch.context() as patch:
        patch.setattr("fedpath.client.tuning.memory.budget_of", lambda *_: 0)
        assert equal(hospital.carry_out(train_order(TUNE, arrays), arrays), expected)
    # Another budget in site.toml counts.
    compute = hospital.config().compute.model_copy(update={"vram_gb": 1e-4})
    with pytest.raises(RefusedError, match="no plan fits"):
        hospital.carry_out(train_order(TUNE, arrays), arrays, compute=compute)


def test_memory_that_runs_out_is_said_and_the_tighter_plan_stays(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedpath.client.agent.worker as module

    whole, calls = module.train, []

    def short(model: Any, *args: Any, **keywords: Any) -> Any:
        calls.append(model.memory.micro_batch)
        if model.memory.micro_batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, *args, **keywords)

    monkeypatch.setattr(module, "train", short)
    arrays = first_arrays(TUNE)
    answer, trained = hospital.carry_out(train_order(TUNE, arrays), arrays)
    assert trained.keys() == arrays.keys()
    assert calls == [16, 8]
    (tightened,) = hospital.said("memory_tightened")
    assert tightened["micro_batch"] == 8
    # Also after a restart, and to the same bits.
    assert equal(hospital.carry_out(train_order(TUNE, arrays), arrays), (answer, trained))
    assert calls == [16, 8, 8]


def test_a_hospital_that_was_not_there_in_an_earlier_stage(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    encode_facts, train_facts = tuned_facts(BASE)
    shutil.rmtree(hospital.state / "pick")
    for order, name, came in (
        (Describe(facts=TUNE), "pick", {}),
        (train_order(TUNE, arrays), "pick", arrays),
        (Encode(facts=encode_facts), "tune", {}),
        (Describe(facts=train_facts), "again", {}),
        (train_order(train_facts, first_arrays(train_facts)), "again", first_arrays(train_facts)),
    ):
        with pytest.raises(RefusedError, match=rf"site A has nothing of stage '{name}': it did not take part"):
            hospital.carry_out(order, came)


def test_a_tuned_encoder_that_is_not_the_federations(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    hospital.carry_out(finish(TUNE, arrays), arrays)
    with pytest.raises(RefusedError, match=rf"the tuned encoder here has hash {BASE[:12]}…, the order asks for eeee"):
        hospital.carry_out(Encode(facts=tuned_facts("e" * 64)[0]))
    assert not (hospital.state / "again").exists()


def test_orders_that_do_not_belong_to_a_stage(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    encode_facts, train_facts = tuned_facts(BASE)
    for order in (Encode(facts=TUNE), Encode(facts=train_facts), train_order(encode_facts, arrays)):
        with pytest.raises(RefusedError, match="came in a stage of kind"):
            hospital.carry_out(order, arrays)
    for change in ({"tuning": None}, {"encoder_sha256": None}, {"selector": None}):
        run = TUNE.model_copy(update={"stage": TUNE.stage.model_copy(update=change)})  # type: ignore[union-attr]
        with pytest.raises(RefusedError, match="the order does not say"):
            hospital.carry_out(train_order(run, arrays), arrays)


def test_counts_of_few_patients_cannot_be_told_from_how_many_slides_were_encoded(hospital: Hospital) -> None:
    arrays = first_arrays(TUNE)
    hospital.carry_out(finish(TUNE, arrays), arrays)
    policy = hospital.config().policy.model_copy(update={"min_patients": 3})
    encoded, _ = hospital.carry_out(Encode(facts=tuned_facts(BASE)[0]), policy=policy)
    assert encoded.slides == 4  # two validation and two test patients are fewer than three


def test_weights_file_that_is_missing(hospital: Hospital) -> None:
    encoder = hospital.config().encoder.model_copy(update={"weights": hospital.folder / "none.pt"})
    with pytest.raises((ConfigError, DataError), match=r"none\.pt"):
        carry_out_some(hospital, "describe", encoder=encoder)


def test_chosen_patches_keep_the_files_order(hospital: Hospital) -> None:
    selector, _ = load_model(hospital.state / "pick" / "federated.safetensors")
    cohort = load_cohort(hospital.folder / "manifest.csv", labels=LABELS)
    (example, *_) = load_examples(cohort, hospital.folder / "features", "train", width=FEATURES.width)
    kept = choose(selector, example, 7).bag
    rows = [example.bag.coords_N2.tolist().index(corner) for corner in kept.coords_N2.tolist()]
    assert rows == sorted(rows)
    assert len(rows) == 7
    assert torch.equal(kept.features_ND, example.bag.features_ND[rows])
    assert read_meta(hospital.folder / "features" / f"{example.slide_id}.h5").patch_px == PATCH_PX
