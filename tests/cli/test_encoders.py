"""`fedpath encoders`: what there is, for people and for programs."""

import json

import pytest
from command import fedpath

from fedpath.core.encoders import available


@pytest.mark.parametrize("columns", ["80", "140"])
def test_lists_every_encoder_with_its_licence(columns: str) -> None:
    run = fedpath("encoders", "list", environment={"COLUMNS": columns})
    assert run.code == 0, run.err
    assert max(map(len, run.out.splitlines())) <= int(columns)
    text = " ".join(run.out.split())
    for info in available():
        assert info.name in text
    assert "ViT-L/16: the class token a file, given to who accepts the terms · CC-BY-NC-ND-4.0" in text


def test_lists_as_json() -> None:
    run = fedpath("encoders", "list", "--json")
    found = json.loads(run.out)
    assert [facts["name"] for facts in found] == [info.name for info in available()]
    uni = next(facts for facts in found if facts["name"] == "uni_v1")
    assert (uni["width"], uni["patch_px"], uni["gated"], uni["aliases"]) == (1024, 224, True, ["uni"])


def test_shows_one_by_any_of_its_names() -> None:
    run = fedpath("encoders", "show", "uni2-h", environment={"COLUMNS": "200"})
    assert run.code == 0, run.err
    text = " ".join(run.out.split())
    assert text.startswith("uni_v2 other names uni2, uni2-h architecture ViT-H/14, 8 registers parameters 681,394,176")
    assert "colours imagenet: (rgb/255-mean)/sd, mean 0.485 0.456 0.406, sd 0.229 0.224 0.225" in text
    assert "https://huggingface.co/MahmoodLab/UNI2-h" in text
    assert "--encoder uni_v2 --weights FILE --mpp 0.5 --patch 224" in text
    as_json = json.loads(fedpath("encoders", "show", "uni_v2", "--json").out)
    assert as_json["parameters"] == 681_394_176


def test_an_encoder_with_weights_of_its_own_asks_for_none() -> None:
    run = fedpath("encoders", "show", "seeded-conv", environment={"COLUMNS": "200"})
    assert "weights come with it" in " ".join(run.out.split())
    assert "--weights" not in run.out


def test_an_unknown_name_is_answered_in_two_lines() -> None:
    fedpath("encoders", "show", "uni_v3").assert_error(2, "encoder 'uni_v3' is unknown", "did you mean 'uni_v")
