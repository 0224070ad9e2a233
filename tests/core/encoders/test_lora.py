"""Low-rank adapters: nothing changes until they are trained, and then only they do."""

from pathlib import Path

import pytest
import torch

from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders import (
    PatchEncoder,
    blank_encoder,
    build_encoder,
    encoder_sha256,
    first_trainable_stage,
    load_encoder,
    save_encoder,
    trainable_names,
)
from fedpath.core.encoders.lora import add_adapters
from fedpath.core.errors import ConfigError, DataError

TUNING = TuningSection(adapter="lora", rank=4, alpha=8)
RGB = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def adapted(seed: int = 0, trained: bool = False) -> PatchEncoder:
    encoder = build_encoder("tiny-vit")
    add_adapters(encoder, TUNING.rank, TUNING.alpha, seed)
    if trained:
        generator = torch.Generator().manual_seed(5)
        for name, tensor in encoder.state_dict().items():
            if name.endswith("lora_up"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return encoder


def test_features_stay_the_same_to_the_bit_at_the_start() -> None:
    assert torch.equal(adapted()(RGB), build_encoder("tiny-vit")(RGB))
    assert not torch.allclose(adapted(trained=True)(RGB), build_encoder("tiny-vit")(RGB), atol=0.1)


def test_the_seed_decides_the_first_matrix_and_nothing_else_is_drawn() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = adapted()
    assert torch.equal(torch.rand(4), expected)
    assert encoder_sha256(first) == encoder_sha256(adapted())
    assert encoder_sha256(first) != encoder_sha256(adapted(seed=1))
    down = first.state_dict()["blocks.1.attn.qkv.lora_down"]
    assert down.shape == (4, 48)
    assert float(down.std()) == pytest.approx((1 / (3 * 48)) ** 0.5, rel=0.15)


def test_adapters_are_beside_all_attention_layers_under_names_of_their_own() -> None:
    added = adapted().state_dict().keys() - build_encoder("tiny-vit").state_dict().keys()
    layers = [f"blocks.{block}.attn.{layer}" for block in range(3) for layer in ("qkv", "proj")]
    assert added == {f"{layer}.{part}" for layer in layers for part in ("lora_down", "lora_up", "lora_scale")}
    assert blank_encoder("tiny-vit", TUNING).state_dict().keys() == adapted().state_dict().keys()


def test_only_adapters_are_trained() -> None:
    encoder = adapted()
    names = trainable_names(encoder, "tiny-vit", TUNING)
    assert len(names) == 12
    assert all(name.endswith(("lora_down", "lora_up")) for name in names)
    assert first_trainable_stage(encoder, "tiny-vit", TUNING) == 1
    with pytest.raises(ConfigError, match="encoder 'tiny-vit' has no adapters to train"):
        trainable_names(build_encoder("tiny-vit"), "tiny-vit", TUNING)


def test_alpha_is_part_of_the_identity() -> None:
    one, other = build_encoder("tiny-vit"), build_encoder("tiny-vit")
    add_adapters(one, 4, 8)
    add_adapters(other, 4, 16)
    assert encoder_sha256(one) != encoder_sha256(other)


@pytest.mark.parametrize("name", ["tiny-resnet", "seeded-conv", "resnet50", "resnet50-layer4"])
def test_an_encoder_without_attention_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="adapter 'lora' is for the attention layers of transformers"):
        blank_encoder(name, TUNING)


def test_adapters_are_added_once() -> None:
    with pytest.raises(ConfigError, match="has low-rank adapters already"):
        add_adapters(adapted(), 4, 8)


def test_an_adapted_encoder_is_the_same_after_a_file(tmp_path: Path) -> None:
    path, encoder = tmp_path / "encoder.safetensors", adapted(trained=True)
    base = encoder_sha256(build_encoder("tiny-vit"))
    sha256 = save_encoder(path, encoder, name="tiny-vit", base_sha256=base, tuning=TUNING)
    again, name = load_encoder(path)
    assert (name, encoder_sha256(again), sha256) == ("tiny-vit", sha256, encoder_sha256(encoder))
    assert torch.equal(again(RGB), encoder(RGB))
    assert torch.equal(build_encoder("tiny-vit", path)(RGB), encoder(RGB))
    # Its base is not changed by having been adapted, and is not mistaken for it.
    assert base != sha256
    with pytest.raises(ValueError, match="saved with the tuning section"):
        save_encoder(path, encoder, name="tiny-vit", base_sha256=base, tuning=None)


def test_an_adapted_encoder_in_a_file_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    torch.save(adapted().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(DataError, match=r"has blocks\.0\.attn\.qkv\.lora_down, .* too many"):
        build_encoder("tiny-vit", tmp_path / "plain.pt")
