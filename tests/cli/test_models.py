"""`fedpath models`: what can be trained, ours and other packages'."""

from pathlib import Path

import pytest
from command import fedpath
from own_package import installed, write_package

from fedpath.core.models import available_models, build_model
from fedpath.core.models.registry import NOMINAL_CLINICAL


@pytest.mark.parametrize("columns", ["80", "120"])
def test_lists_every_model_with_size_source_and_needs(columns: str) -> None:
    run = fedpath("models", "list", environment={"COLUMNS": columns})
    assert run.code == 0, run.err
    assert max(map(len, run.out.splitlines())) <= int(columns)
    text = " ".join(run.out.split())
    for info in available_models():
        model = build_model(info.name, width=1024, n_classes=2, seed=0, clinical=NOMINAL_CLINICAL)
        assert f"{info.name} {sum(p.numel() for p in model.parameters()):,}" in text
    # A wrapped row stands under its own column.
    for info in available_models():
        for words in (info.summary, info.source, info.needs):
            assert all(word in run.out for word in words.split())
    assert "those of 1024 features and 2 labels" in text
    assert "* with clinical data of a number, a category, a binary" in text


def test_counts_parameters_for_the_features_and_labels_asked_about() -> None:
    run = fedpath("models", "list", "--width", "384", "--classes", "5")
    assert run.code == 0, run.err
    count = sum(p.numel() for p in build_model("acmil", width=384, n_classes=5, seed=0).parameters())
    assert f"{count:,}" in run.out
    assert fedpath("models", "list", "--width", "0").code == 2


def test_shows_the_options_of_one() -> None:
    for info in available_models():
        run = fedpath("models", "show", info.name)
        assert run.code == 0, run.err
        assert info.source in run.out
        for option in info.options:
            assert option.name in run.out
            assert ("auto" if option.default is None else str(option.default)) in run.out
    fedpath("models", "show", "acmill").assert_error(2, "no such model", "did you mean 'acmil'?")


def test_lists_models_of_other_packages_without_importing_them(tmp_path: Path) -> None:
    write_package(tmp_path)
    with installed(tmp_path):
        run = fedpath("models", "list")
        assert run.code == 0, run.err
        assert list(tmp_path.glob("imported-by-*")) == []
        (row,) = (line for line in run.out.splitlines() if line.startswith("my-mil"))
        assert row.split()[1] == "–"
        assert "mymil:MyMIL of my-package 1.0" in run.out

        shown = fedpath("models", "show", "my-mil", "--width", "16")
        assert shown.code == 0, shown.err
        assert "package my-package 1.0" in shown.out
        assert "179 (16 features, 2 labels)" in shown.out  # 16 × 8 + 8, 2 × 8, 8 + 1, 8 × 2 + 2
        assert "hidden  8" in shown.out


def test_shows_what_is_wrong_with_a_model_of_another_package(tmp_path: Path) -> None:
    write_package(tmp_path, source="from torch import nn\n\n\nclass MyMIL(nn.Linear):\n    pass\n")
    with installed(tmp_path):
        words = (
            "error: own model 'my-mil' (mymil:MyMIL of package my-package 1.0)",
            "unexpected keyword argument 'width'",
        )
        fedpath("models", "show", "my-mil").assert_error(2, *words)
        with pytest.raises(Exception, match="own model") as caught:
            fedpath("--debug", "models", "show", "my-mil")
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_model_with_required_options_shows_them(tmp_path: Path) -> None:
    source = (
        "from torch import nn\n\n\ndef MyMIL(width, n_classes, depth, heads=4): return nn.Linear(width, n_classes)\n"
    )
    write_package(tmp_path, source=source)
    with installed(tmp_path):
        run = fedpath("models", "show", "my-mil")
    assert run.code == 0, run.err
    assert "depth   required" in run.out
    assert "heads   4" in run.out
