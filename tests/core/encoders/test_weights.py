"""Files of weights: as others publish them, and everything that can be wrong with one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpath.core.encoders import blank_encoder, build_encoder, encoder_sha256, load_encoder, save_encoder
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.tensor_files import save_tensors

RGB = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def state(name: str = "tiny-resnet") -> dict[str, Tensor]:
    """Return weights unlike those that the encoder comes with."""
    return {key: tensor * 1.25 for key, tensor in build_encoder(name).state_dict().items()}


def published() -> dict[str, Tensor]:
    """Return weights with what else torchvision's files hold."""
    counters = {key.replace("running_var", "num_batches_tracked"): torch.tensor(7) for key in state() if "_var" in key}
    return state() | counters | {"fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}


def check_same(path: Path, name: str = "tiny-resnet") -> None:
    expected = build_encoder(name)
    expected.load_state_dict(state(name))
    found = build_encoder(name, path)
    assert encoder_sha256(found) == encoder_sha256(expected)
    assert torch.equal(found(RGB), expected(RGB))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda plain: plain,
        lambda plain: {"state_dict": plain, "epoch": 3, "loss": torch.tensor(1.0)},
        lambda plain: {"model": {f"module.{key}": tensor for key, tensor in plain.items()}},
        lambda plain: {"teacher": {f"module.backbone.{key}": t for key, t in plain.items()}, "student": {"x": plain}},
        lambda plain: {"state_dict": {"model": plain}},
    ],
)
def test_published_files_are_read_whatever_wraps_them(wrapped: Any, tmp_path: Path) -> None:
    torch.save(wrapped(published()), tmp_path / "weights.pth")
    check_same(tmp_path / "weights.pth")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    save_file(published(), tmp_path / "pytorch_model.bin")
    check_same(tmp_path / "pytorch_model.bin")
    torch.save(published(), tmp_path / "model.safetensors")
    check_same(tmp_path / "model.safetensors")
    torch.save(published(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_same(tmp_path / "old.pt")


def test_half_precision_and_strides_do_not_matter(tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in state().items()}
    torch.save(
        {key: t.transpose(0, -1).contiguous().transpose(0, -1) for key, t in halves.items()}, tmp_path / "half.pt"
    )
    found = build_encoder("tiny-resnet", tmp_path / "half.pt").state_dict()
    assert all(torch.equal(found[key], halves[key].float()) and found[key].is_contiguous() for key in found)


def test_a_transformers_classifier_is_left_out_and_its_layer_scale_kept(tmp_path: Path) -> None:
    extra = {"head.weight": torch.ones(4, 48), "head.bias": torch.ones(4), "mask_token": torch.ones(1, 1, 48)}
    torch.save(state("tiny-vit") | extra, tmp_path / "plain.pt")
    check_same(tmp_path / "plain.pt", "tiny-vit")
    ones = {f"blocks.{block}.ls{branch}.gamma": torch.ones(48) for block in range(3) for branch in (1, 2)}
    torch.save(state("tiny-vit") | ones, tmp_path / "scaled.pt")
    scaled = build_encoder("tiny-vit", tmp_path / "scaled.pt")
    assert torch.equal(scaled(RGB), build_encoder("tiny-vit", tmp_path / "plain.pt")(RGB))
    assert scaled.state_dict().keys() == state("tiny-vit").keys() | ones.keys()
    # And once more after a file of our own.
    save_encoder(tmp_path / "own.safetensors", scaled, name="tiny-vit", base_sha256="0" * 64, tuning=None)
    assert encoder_sha256(load_encoder(tmp_path / "own.safetensors")[0]) == encoder_sha256(scaled)


def test_both_resnet50_load_a_file_of_torchvisions_names(tmp_path: Path) -> None:
    blank = blank_encoder("resnet50-layer4").state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.rand(like.shape, generator=generator) * 0.02 + 0.01 for key, like in blank.items()}
    save_file(weights | {"fc.weight": torch.ones(1000, 2048)}, tmp_path / "resnet50.safetensors")
    for name, width in (("resnet50", 1024), ("resnet50-layer4", 2048)):
        found = build_encoder(name, tmp_path / "resnet50.safetensors")
        assert all(torch.equal(tensor, weights[key]) for key, tensor in found.state_dict().items())
        assert found(torch.rand(1, 3, 64, 64)).shape == (1, width)


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(path: Path, name: str = "tiny-resnet") -> str:
    with pytest.raises(DataError) as caught:
        build_encoder(name, path)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return str(caught.value)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    assert "no such file of weights" in refused(tmp_path / "absent.pt")
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    said = refused(path)
    assert any(words in said for words in ("not a whole", "neither a safetensors nor", "not a torch file"))


class Trap:
    """What must never run when a file is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(), "trap": Trap()}, tmp_path / "trap.pt")
    assert "other content is never run" in refused(tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_text("these are not weights\n" * 20)
    assert "neither a safetensors nor a torch file" in refused(path)
    torch.save([1, 2, 3], path)
    assert "holds no weights by name" in refused(path)
    torch.save({"epoch": 3}, path)
    assert "holds no weights by name" in refused(path)


def test_another_architecture_is_named_by_what_differs(tmp_path: Path) -> None:
    torch.save(state("tiny-vit"), tmp_path / "vit.pt")
    said = refused(tmp_path / "vit.pt")
    assert "lacks conv1.weight, bn1.weight, bn1.bias and 82 more" in said
    assert "has cls_token, pos_embed, patch_embed.proj.weight and 39 more too many" in said
    torch.save({key: tensor for key, tensor in state().items() if key != "layer3.0.bn2.bias"}, tmp_path / "less.pt")
    assert "it lacks layer3.0.bn2.bias (" in refused(tmp_path / "less.pt")


def test_register_tokens_belong_to_other_encoders(tmp_path: Path) -> None:
    torch.save(state("tiny-vit") | {"reg_token": torch.zeros(1, 4, 48)}, tmp_path / "registers.pt")
    assert "these have register tokens" in refused(tmp_path / "registers.pt", "tiny-vit")


def test_another_width(tmp_path: Path) -> None:
    wide = state() | {"layer1.0.conv1.weight": torch.zeros(8, 4, 1, 1)}
    torch.save(wide, tmp_path / "wide.pt")
    assert "layer1.0.conv1.weight is 8×4×1×1, this encoder's is 4×4×1×1" in refused(tmp_path / "wide.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    bad = state()
    bad["layer2.0.conv2.weight"][0, 0, 0, 0] = value
    torch.save(bad, tmp_path / "nan.pt")
    assert "layer2.0.conv2.weight holds NaN or infinite values" in refused(tmp_path / "nan.pt")


def test_quantised_weights(tmp_path: Path) -> None:
    torch.save(state() | {"conv1.weight": state()["conv1.weight"].to(torch.int8)}, tmp_path / "int8.pt")
    assert "conv1.weight is of type torch.int8" in refused(tmp_path / "int8.pt")


def test_one_name_twice(tmp_path: Path) -> None:
    double = state() | {f"module.{key}": tensor for key, tensor in state().items()}
    torch.save(double, tmp_path / "double.pt")
    assert "holds 'conv1.weight' more than once (module.conv1.weight)" in refused(tmp_path / "double.pt")


@pytest.mark.parametrize("name", ["resnet50", "resnet50-layer4", "vit-small-16", "vit-large-16"])
def test_an_encoder_without_weights_says_where_to_get_them(name: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder '{name}' comes without weights") as caught:
        build_encoder(name)
    for hint in ("--weights FILE", "[encoder]", "from:", "licence:"):
        assert hint in caught.value.remedy


# --- files of our own -------------------------------------------------------------------------------------------------


def saved(path: Path) -> str:
    encoder = build_encoder("tiny-resnet")
    encoder.load_state_dict(state())
    return save_encoder(path, encoder, name="tiny-resnet", base_sha256="0" * 64, tuning=None)


def test_a_tuned_encoder_is_the_same_after_a_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    sha256 = saved(path)
    encoder, name = load_encoder(path)
    assert (name, encoder_sha256(encoder)) == ("tiny-resnet", sha256)
    check_same(path)
    first = path.read_bytes()
    saved(path)
    assert path.read_bytes() == first
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"fedpath_encoder": "tiny-resnet", "sha256": sha256, "base_sha256": "0" * 64}


def test_a_tuned_encoder_is_not_taken_for_another(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    saved(path)
    with pytest.raises(ConfigError, match="holds encoder 'tiny-resnet', not 'resnet50'"):
        build_encoder("resnet50", path)


def test_a_file_that_does_not_say_what_it_is_cannot_be_a_tuned_encoder(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "plain.safetensors")
    with pytest.raises(DataError, match="does not say which encoder it is"):
        load_encoder(tmp_path / "plain.safetensors")


def test_a_tuned_encoder_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    metadata = {"fedpath_encoder": "tiny-resnet", "sha256": saved(path), "base_sha256": "0" * 64}
    save_tensors(path, state() | {"bn1.bias": torch.ones(4)}, metadata)
    with pytest.raises(DataError, match="its weights are not those that were saved"):
        load_encoder(path)
    save_tensors(path, state("tiny-vit"), metadata | {"fedpath_encoder": "tiny-vit", "rank": "many"})
    with pytest.raises(DataError, match="rank or alpha is no number"):
        load_encoder(path)
