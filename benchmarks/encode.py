"""How long the encoder waits for pixels while a folder of slides is encoded.

The encoder stands in for a GPU: it takes a fixed time a batch, without using the processor, and gives features as wide
as a foundation model's. Its rates are those of ViT-L and ViT-S class encoders on a current GPU (`--rates`). Slides are
drawn here, at 40x with a pyramid of JPEG tiles, and encoded at 20x in patches of 256 px by ``encode_slides``, as
`fedpath slides encode` does it: opened, hashed, searched for tissue, read, and written to feature files. The wait is
the time between the end of one call of the encoder and the start of the next, from its first call to its last: borders
between slides count. `before` is the plain loop beside it: OpenSlide's best level,
bicubic where it must shrink, one slide after the other, the same patches in the same process.

`python encode.py [--quick] [--write]`
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import openslide
from _common import machine, report, write_block
from numpy.typing import NDArray
from PIL import Image

from fedpath.client.slides.encoders import EncoderFacts, describe
from fedpath.client.slides.prepare import Job, Prepared, prepare
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.synthetic.draw import draw_slide
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.client.slides.synthetic.knobs import Difficulty
from fedpath.client.slides.synthetic.stain import colour, look_of
from fedpath.client.slides.work import encode_slides

_PAGE = Path(__file__).parents[1] / "docs" / "reading.md"
_WIDTH, _BATCH, _PATCH, _MPP, _SCANNED_MPP = 1024, 64, 256, 0.5, 0.25
_RATES = {"vit_l": 400, "vit_s": 1000}
"""Patches per second: of UNI-like and of small encoders in half precision."""
_SHOWN = "vit_l"


class StubGpu:
    """An encoder that takes its time and no processor."""

    def __init__(self, rate: float) -> None:
        self.info: EncoderFacts = replace(describe("seeded-conv"), width=_WIDTH)
        self._rate, self._random = rate, np.random.default_rng(0)
        self._ended: float | None = None
        self.busy = self.waited = 0.0

    def encode(self, patches_BHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return features after the time a GPU would take."""
        started = time.perf_counter()
        if self._ended is not None:
            self.waited += started - self._ended
        time.sleep(len(patches_BHWC) / self._rate)
        features_BD = self._random.standard_normal((len(patches_BHWC), _WIDTH), np.float32).astype(np.float16)
        self._ended = time.perf_counter()
        self.busy += self._ended - started
        return features_BD

    @property
    def wait_share(self) -> float:
        """Share of the time from the first call to the last in which it waited."""
        return self.waited / (self.waited + self.busy)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer slides, one turn")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reading.md")
    arguments = parser.parse_args()
    count, turns = (3, 1) if arguments.quick else (6, 3)
    shares: dict[str, list[float]] = {}
    patches = 0
    with tempfile.TemporaryDirectory() as folder:
        slides = [_draw(Path(folder) / f"slide-{number}.tif", number) for number in range(count)]
        for turn in range(turns):
            for name, rate in _RATES.items():
                print(f"{name}: turn {turn + 1} of {turns}", flush=True)
                gpu, out = StubGpu(rate), Path(folder) / f"{name}-{turn}"
                patches = _ours(slides, out, gpu)
                shares.setdefault(name, []).append(gpu.wait_share)
                gpu = StubGpu(rate)
                _plain_loop(slides, out / "again", gpu)
                shares.setdefault(f"{name}_before", []).append(gpu.wait_share)
    figures = {f"wait_share_{name}": median(values) for name, values in shares.items()} | {"patches": float(patches)}
    ratios = {"encoder_wait_share": figures[f"wait_share_{_SHOWN}"]}
    report("encode", figures, ratios, {"encoder_wait_share": "≤ 0.15"}, quick=arguments.quick)
    if arguments.write:
        rows = [[f"the encoder's rate; {machine()}", "waits: fedpath", "waits: OpenSlide, slide after slide"]]
        for name, rate in _RATES.items():
            ours, before = figures[f"wait_share_{name}"], figures[f"wait_share_{name}_before"]
            rows.append([f"{rate} patches a second", f"{ours:.0%}", f"{before:.0%}"])
        write_block(_PAGE, "encode", rows)


def _draw(path: Path, seed: int) -> Path:
    look = look_of(0)
    picture = colour(draw_slide(np.random.default_rng(seed), Difficulty(), look.mix, positive=True), look)
    write_slide(path, np.tile(picture, (2, 2, 1)), _SCANNED_MPP)
    return path


def _settings() -> EncodeSettings:
    return EncodeSettings(_MPP, _PATCH, batch=_BATCH, readers=2)


def _ours(slides: list[Path], out: Path, gpu: StubGpu) -> int:
    jobs = (Job(path, out, None) for path in slides)
    return sum(outcome.patches for _, outcome in encode_slides(jobs, gpu, _settings(), lambda *_: None))


def _plain_loop(slides: list[Path], out: Path, gpu: StubGpu) -> None:
    for path in slides:
        prepared = prepare(Job(path, out, None), _settings(), gpu.info)
        assert isinstance(prepared, Prepared)
        prepared.slide.close()
        with openslide.OpenSlide(path) as slide:
            for batch_BHWC in _batches(slide, prepared.corners_N2):
                gpu.encode(batch_BHWC)


def _batches(slide: openslide.OpenSlide, corners_N2: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    downsample = _MPP / _SCANNED_MPP
    level = slide.get_best_level_for_downsample(downsample)
    edge = round(_PATCH * downsample / slide.level_downsamples[level])
    for start in range(0, len(corners_N2), _BATCH):
        regions = (slide.read_region(at, level, (edge, edge)) for at in corners_N2[start : start + _BATCH].tolist())
        shrunk = (r.convert("RGB").resize((_PATCH, _PATCH), Image.Resampling.BICUBIC) for r in regions)
        yield np.stack([np.asarray(patch) for patch in shrunk])


if __name__ == "__main__":
    main()
