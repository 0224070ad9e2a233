"""The work of an encode stage: every slide of the cohort encoded again, with the encoder that was fine-tuned."""

import time
from pathlib import Path

from fedpath.client.agent.contract import contract_of
from fedpath.client.agent.data import SiteData
from fedpath.client.agent.folders import FEATURES, StageFolders
from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.encoders import describe
from fedpath.client.slides.outcome import EncodeProgress
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.tuning.originals import find_originals, origin_of_features, slides_of
from fedpath.core.bags.store import FeatureMeta, read_meta
from fedpath.core.cohort.manifest import SPLITS
from fedpath.core.errors import DataError, RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import Encoded, RunFacts


def encode_again(facts: RunFacts, folders: StageFolders, data: SiteData, device: str, events: EventLog) -> Encoded:
    """Encode the slides of the manifest into the stage's folder and return what may be told of it.

    A slide that is done is not done twice, so an agent that was killed goes on where it was.

    Raises:
        RefusedError: this hospital has no slides, or no encoder of the stage that the order names, or another one.
        DataError: a slide is missing, has changed or cannot be encoded.
    """
    config, started = folders.config, time.monotonic()
    section = slides_of(config, "encoding")
    weights = folders.tuned_encoder()
    _check_encoder(facts, config.site.name, weights)
    cohort = data.cohort(facts)
    ids = [slide.slide_id for slide in cohort.slides]
    before = {name: origin_of_features(config.data.features / f"{name}.h5", name) for name in ids}
    find_originals(section.folder, ids)
    target, told = folders.own / FEATURES, _Told(events)
    report = encode_folder(
        section.folder,
        target,
        EncodeSettings(
            _stated(facts.features.mpp, "mpp"),
            int(_stated(facts.features.patch_px, "patch_px")),
            threads=config.compute.threads,
        ),
        encoder=facts.features.encoder,
        weights=weights,
        device=device,
        progress=told,
        only={name: section.mpp if section.mpp is not None else before[name].mpp_level0 for name in ids},
    )
    for bad in report.quarantined:
        raise DataError(f"{bad.reason} (slide '{bad.slide_id}', stage '{folders.own.name}')", remedy=bad.remedy)
    paths = [target / f"{name}.h5" for name in ids]
    for path, name in zip(paths, ids, strict=True):
        _check_same_slide(read_meta(path), before[name])
    contract = contract_of(paths, None)
    seconds = time.monotonic() - started
    events.emit("encoded", slides=len(report.done), already=len(report.skipped), folder=str(target), seconds=seconds)
    # As in a description: what a total would tell of a split with few patients is not told.
    counted = [split for split in SPLITS if len(cohort.patients(split)) >= config.policy.min_patients]
    return Encoded(contract=contract, slides=sum(len(cohort.of(split)) for split in counted), seconds=seconds)


class _Told:
    """Progress of encoding as events: one a slide."""

    def __init__(self, events: EventLog) -> None:
        self._events, self._last = events, -1

    def __call__(self, at: EncodeProgress) -> None:
        if at.index != self._last:
            self._last = at.index
            self._events.emit("encoding", done=at.index, total=at.total)


def _check_encoder(facts: RunFacts, site: str, weights: Path) -> None:
    """Check that the encoder which fine-tuning left here is the one the federation goes on with.

    Raises:
        RefusedError: it is another one.
    """
    wanted = None if facts.stage is None else facts.stage.encoder_sha256
    found = describe(facts.features.encoder, weights).sha256
    if found != wanted:
        raise RefusedError(
            f"site {site} refuses: the tuned encoder here has hash {found[:12]}…, the order asks for "
            f"{'none' if wanted is None else f'{wanted[:12]}…'}",
            remedy="run the same version of fedpath on both sides, and start a new run",
        )


def _check_same_slide(now: FeatureMeta, before: FeatureMeta) -> None:
    """Check that a slide is the one whose features went into the stages before.

    Raises:
        DataError: naming it.
    """
    if now.slide_sha256 != before.slide_sha256:
        raise DataError(
            f"slide '{now.slide_id}' has changed since it was encoded for the stages before",
            remedy="put back the slide that was encoded then",
        )


def _stated(value: float | None, key: str) -> float:
    """Return a value that an encode stage's order must state."""
    if value is None:
        raise RefusedError(
            f"the order does not say with which {key} slides are to be encoded",
            remedy=f"set features.{key} in federation.toml",
        )
    return value
