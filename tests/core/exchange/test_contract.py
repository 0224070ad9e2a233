"""Which features fit the federation, and which sites' differ from the others'."""

import pytest

from fedpath.core.config.federation import FeaturesSection
from fedpath.core.exchange.contract import FeatureContract, differences, disagreements

EXPECTED = FeaturesSection(encoder="uni", width=1024, mpp=0.5, patch_px=256, encoder_sha256="a" * 64)
STATED = FeatureContract(
    encoder="uni", encoder_sha256="a" * 64, width=1024, mpp=0.5, patch_px=256, transform="imagenet"
)


def test_the_same_fits() -> None:
    assert differences(EXPECTED, STATED) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("encoder", "conch", "encoder is 'conch', the federation asks for 'uni'"),
        ("width", 768, "width is 768, the federation asks for 1024"),
        ("mpp", 0.25, "mpp is 0.25, the federation asks for 0.5"),
        ("mpp", None, "mpp is None, the federation asks for 0.5"),
        ("patch_px", 224, "patch_px is 224, the federation asks for 256"),
        ("encoder_sha256", "b" * 64, f"encoder_sha256 is '{'b' * 64}', the federation asks for '{'a' * 64}'"),
    ],
)
def test_each_difference_is_said(key: str, value: object, words: str) -> None:
    assert differences(EXPECTED, STATED.model_copy(update={key: value})) == [words]


def test_all_differences_are_said_at_once() -> None:
    assert len(differences(EXPECTED, STATED.model_copy(update={"width": 1, "mpp": 1.0, "patch_px": 1}))) == 3


def test_a_table_has_neither_resolution_nor_patches() -> None:
    expected = FeaturesSection(encoder="table", width=4)
    table = FeatureContract(
        encoder="table", encoder_sha256="c" * 64, width=4, mpp=None, patch_px=None, transform="none"
    )
    assert differences(expected, table) == []
    assert differences(expected, table.model_copy(update={"mpp": 0.5})) != []


def test_weights_that_the_federation_does_not_name_are_for_the_sites_to_agree_on() -> None:
    free = EXPECTED.model_copy(update={"encoder_sha256": None})
    assert differences(free, STATED.model_copy(update={"encoder_sha256": "b" * 64})) == []


def stated(**weights: str) -> dict[str, FeatureContract]:
    return {site: STATED.model_copy(update={"encoder_sha256": mark * 64}) for site, mark in weights.items()}


def test_sites_that_agree() -> None:
    assert disagreements({}) == {}
    assert disagreements(stated(A="a")) == {}
    assert disagreements(stated(A="a", B="a", C="a")) == {}


def test_the_odd_one_out_is_told_both_sides() -> None:
    (site, reason), *others = disagreements(stated(A="b", B="a", C="a")).items()
    assert (site, others) == ("A", [])
    assert reason == (
        f"encoder weights {'b' * 12}… with transform 'imagenet'; most sites have {'a' * 12}… with 'imagenet'"
    )


def test_another_transform_is_another_encoder() -> None:
    sites = stated(A="a", B="a", C="a")
    sites["B"] = sites["B"].model_copy(update={"transform": "none"})
    assert list(disagreements(sites)) == ["B"]


@pytest.mark.parametrize("order", ["ABCD", "DCBA", "CADB"])
def test_a_tie_goes_to_the_first_in_alphabetical_order_whoever_answered_first(order: str) -> None:
    marks = {"A": "b", "B": "a", "C": "a", "D": "b"}
    sites = stated(**{site: marks[site] for site in order})
    assert set(disagreements(sites)) == {"B", "C"}
    assert set(disagreements(stated(C="x", B="y"))) == {"C"}


def test_what_is_checked_elsewhere_is_no_disagreement() -> None:
    # Width, resolution and patch size are the federation's to say (`differences`).
    sites = stated(A="a", B="a")
    sites["B"] = sites["B"].model_copy(update={"width": 3})
    assert disagreements(sites) == {}


def test_what_a_site_calls_its_encoder_cannot_steer_a_terminal() -> None:
    stated = FeatureContract(
        encoder="e", encoder_sha256="\x1b[2J\n0", width=4, mpp=None, patch_px=None, transform="\x1b]0;t\x07"
    )
    assert stated.encoder_sha256.isprintable()
    assert stated.transform.isprintable()
