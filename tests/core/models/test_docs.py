"""The examples of docs/models.md run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpath.core.bags import FeatureMeta, read_bag, write_features
from fedpath.core.models import available_models, build_model, save_model

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path) -> None:
    path, features = tmp_path / "best.safetensors", tmp_path / "slide.h5"
    metadata = {"name": "acmil", "width": "512", "n_classes": "2", "options": "{}", "labels": json.dumps(["no", "yes"])}
    save_model(path, build_model("acmil", width=512, n_classes=2, seed=0).state_dict(), metadata)
    facts = dict.fromkeys(("encoder", "encoder_sha256", "transform", "reader", "slide_sha256"), "x")
    sizes = dict.fromkeys(("mpp_level0", "mpp", "patch_px", "level0_width", "level0_height"))
    meta = FeatureMeta(slide_id="slide", patch_size_level0=256, failed_tiles=0, **facts, **sizes)  # type: ignore[arg-type]
    write_features(features, np.ones((7, 512)), np.zeros((7, 2), dtype=np.int64), meta)

    names: dict[str, Any] = {"path": path, "features": features, "bag": read_bag(features)}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    assert names["output"].attention_N.shape == (7,)
    assert torch.isfinite(names["model"].slide_head.weight.grad).all()
    assert (names["with_table"].route, names["without_table"].route) == ("multi-modal", "single-modal")


def test_every_option_is_documented() -> None:
    for model in available_models():
        for option in model.options:
            assert f"`{option.name}`" in PAGE
