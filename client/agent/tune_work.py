"""The work of a fine-tune stage: encoder and head trained on the pixels of the patches that the selector chose.

Patients of the test split take no part: their slides are neither ranked nor read before the new encoder is there.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from fedpath.client.agent.data import SiteData
from fedpath.client.agent.folders import ENCODER, HEAD, PATCHES, StageFolders
from fedpath.client.agent.work import Fill, Trainer
from fedpath.client.slides.encoders import describe
from fedpath.client.tuning.choose import choose
from fedpath.client.tuning.memory import Memory, Task
from fedpath.client.tuning.originals import find_originals, origin_of_features, slides_of
from fedpath.client.tuning.pixels import Source, read_patches
from fedpath.core.cohort.examples import Example
from fedpath.core.cohort.manifest import Split
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.registry import build_encoder, save_encoder
from fedpath.core.errors import ConfigError, RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import RunFacts
from fedpath.core.models.checkpoint import load_model, model_metadata, save_model
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.drift import copies_of
from fedpath.core.training.engines.choose import engine_settings
from fedpath.core.training.loop import TrainResult
from fedpath.core.training.precision import Chosen
from fedpath.core.tuning.build import build_tuner, tuned_encoder
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.model import SparseTuner
from fedpath.core.tuning.plan import Plan

SPLITS_READ: tuple[Split, ...] = ("train", "validation")
_EVENTS_A_STAGE = 20
"""Progress is told about so often, however many slides there are."""


class TuneWork:
    """A stage of kind fine-tune.

    Args:
        facts: the order's.
        folders: of its stage.
        data: what the hospital has.
        device: "cpu" or "cuda".
        precision: what `compute.precision` comes to.
        events: where progress is reported.
    """

    def __init__(
        self, facts: RunFacts, folders: StageFolders, data: SiteData, device: str, precision: Chosen, events: EventLog
    ) -> None:
        self._facts, self._folders, self._data = facts, folders, data
        self._device, self._precision, self._events = device, precision, events
        self._config, self._site = folders.config, folders.config.site.name
        self._planned: Memory | None = None
        self._examples: dict[Split, list[Example]] | None = None

    def check(self) -> None:
        """Check what can be checked before hours of reading: slides, their features, encoder, selector, memory."""
        self._sources()
        self._encoder()
        load_model(self._folders.selector())
        self._memory()

    def examples(self, split: Split) -> list[Example]:
        """Return the slides of a split with the pixels of their chosen patches; none of the test split's."""
        if split not in SPLITS_READ:
            self._events.emit("test_not_read", split=split)
            return []
        if self._examples is None:
            self._examples = self._read()
        return self._examples[split]

    def build(self, learning_rate: float) -> SparseTuner:
        """Build encoder and head."""
        return self._build(learning_rate, self._memory().plan.choice)

    def train(self, learning_rate: float, fill: Fill, trainer: Trainer) -> tuple[BagModel, TrainResult]:
        """Train within the memory that may be used."""

        def attempt(choice: MemoryChoice) -> tuple[BagModel, TrainResult]:
            model = self._build(learning_rate, choice)
            fill(model)
            engine = engine_settings(self._config.compute, self._device, offload=choice.offload)
            return model, trainer(model, choice.precision, engine)

        return self._memory().within(attempt)

    def keep(self, model: BagModel, best_round: int) -> Path:
        """Write the tuned encoder and the head; the pixels are not needed any more."""
        assert isinstance(model, SparseTuner)  # what `build` made
        facts, path = self._facts, self._folders.own / ENCODER
        model.cpu()
        metadata = model_metadata(facts.federation, facts.model, facts.features, facts.labels)
        more = {"run": facts.run, "round": str(best_round)}
        save_model(self._folders.own / HEAD, model.head.state_dict(), metadata | more)
        save_encoder(
            path,
            tuned_encoder(model),
            name=facts.features.encoder,
            base_sha256=self._wanted_encoder(),
            tuning=self._tuning(),
        )
        self._examples = None
        shutil.rmtree(self._folders.own / PATCHES, ignore_errors=True)
        return path

    # --- what it stands on --------------------------------------------------------------------------------------------

    def _tuning(self) -> TuningSection:
        stage = self._facts.stage
        if stage is None or stage.tuning is None:
            raise _unstated("how the encoder is to be trained")
        return stage.tuning

    def _wanted_encoder(self) -> str:
        """Return the hash of the weights that fine-tuning starts from."""
        stage = self._facts.stage
        if stage is None or stage.encoder_sha256 is None:
            raise _unstated("which encoder is to be trained")
        return stage.encoder_sha256

    def _encoder(self) -> PatchEncoder:
        """Return the encoder as every hospital starts from it, with its own weights.

        Raises:
            RefusedError: the weights here are others than the federation's.
            ConfigError: they are missing or of another encoder.
        """
        name, weights, wanted = self._facts.features.encoder, self._config.encoder.weights, self._wanted_encoder()
        # Hashed once as long as the file stays as it is: each round builds the encoder twice.
        found = describe(name, weights).sha256
        if found != wanted:
            raise RefusedError(
                f"site {self._site} refuses: its weights of encoder '{name}' have hash {found[:12]}…, "
                f"the federation's have {wanted[:12]}…",
                remedy="get the weights that the federation's operator uses, and name their file in encoder.weights of "
                "site.toml",
            )
        return build_encoder(name, weights)

    def _build(self, learning_rate: float, choice: MemoryChoice) -> SparseTuner:
        return build_tuner(
            encoder=self._encoder(),
            encoder_name=self._facts.features.encoder,
            head=self._facts.model,
            tuning=self._tuning(),
            n_classes=len(self._facts.labels),
            seed=self._facts.seed,
            learning_rate=learning_rate,
            memory=choice,
        )

    def _memory(self) -> Memory:
        """Return how many patches are taken and how they pass through the encoder: planned once.

        Raises:
            RefusedError: no plan fits; it says the smallest budget that would do.
        """
        if self._planned is None:
            patch_px = self._facts.features.patch_px
            if patch_px is None:
                raise _unstated("how large patches are")
            task = Task(
                self._facts.features.encoder,
                self._facts.model,
                self._tuning(),
                len(self._facts.labels),
                patch_px,
                self._device,
                self._precision,
                copies_of(self._facts.local),
            )
            try:
                self._planned = Memory(self._folders.own, task, self._config.compute, self._tell_tightened)
            except ConfigError as error:
                # About the order and this hospital's GPU, not about its patients: the coordinator may know.
                raise RefusedError(f"site {self._site} refuses: {error.message}", remedy=error.remedy) from None
            self._tell_plan("memory_planned", self._planned.plan)
        return self._planned

    def _tell_tightened(self, plan: Plan) -> None:
        self._tell_plan("memory_tightened", plan)

    def _tell_plan(self, kind: str, plan: Plan) -> None:
        choice = dataclasses.asdict(plan.choice)
        self._events.emit(kind, **choice, peak_bytes=plan.peak_bytes, budget_bytes=plan.budget_bytes)

    # --- patches ------------------------------------------------------------------------------------------------------

    def _sources(self) -> dict[str, Source]:
        """Return where the pixels of each slide of the training and validation patients are.

        Raises:
            RefusedError: this hospital names no slides, or its features come from another encoder than the one that is
                to be trained.
            DataError: a slide is not there, or its feature file does not tell its pixels.
        """
        section = slides_of(self._config, "fine-tuning")
        cohort, wanted = self._data.cohort(self._facts), self._wanted_encoder()
        ids = [slide.slide_id for split in SPLITS_READ for slide in cohort.of(split)]
        metas = {name: origin_of_features(self._folders.features / f"{name}.h5", name) for name in ids}
        if any(meta.encoder_sha256 != wanted for meta in metas.values()):
            raise RefusedError(
                f"site {self._site} refuses: its features come from other weights than the federation's encoder "
                f"({wanted[:12]}…)",
                remedy="encode the slides with the federation's encoder (`fedpath slides encode --weights`)",
            )
        places = find_originals(section.folder, ids)
        return {name: Source(places[name], metas[name], section.mpp) for name in ids}

    def _read(self) -> dict[Split, list[Example]]:
        """Choose the patches of all slides and read their pixels."""
        sources, patches = self._sources(), self._memory().plan.choice.patches
        selector, _ = load_model(self._folders.selector())
        chosen: dict[Split, list[Example]] = {}
        smaller = 0
        for split in SPLITS_READ:
            whole = self._data.examples(split, self._facts, self._folders.features)
            smaller += sum(len(example.bag) < patches for example in whole)
            chosen[split] = [choose(selector, example, patches) for example in whole]
        self._data.forget_examples()
        slides = sum(map(len, chosen.values()))
        self._events.emit("patches_chosen", patches=patches, slides=slides, smaller=smaller)
        flat = [example for split in SPLITS_READ for example in chosen[split]]
        read = read_patches(self._folders.own / PATCHES, flat, sources, self._tell_reading(slides))
        self._events.emit("patches_read", slides=slides, bytes=read.size, unreadable=read.unreadable)
        border = len(chosen["train"])
        return {"train": read.examples[:border], "validation": read.examples[border:]}

    def _tell_reading(self, slides: int) -> Callable[[int, int, int], None]:
        every = max(1, slides // _EVENTS_A_STAGE)

        def tell(done: int, total: int, size: int) -> None:
            if done == total or done % every == 0:
                self._events.emit("reading_patches", done=done, total=total, bytes=size)

        return tell


def _unstated(what: str) -> RefusedError:
    return RefusedError(f"the order does not say {what}", remedy="run the same version of fedpath on both sides")
