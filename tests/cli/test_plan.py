"""`fedpath client plan`: what it says, and what it says to wrong questions."""

from pathlib import Path

import pytest
from command import Run, fedpath

SMALL = ("--encoder", "tiny-resnet", "--patch", "64", "--patches", "96")


def write_site(folder: Path, compute: str) -> Path:
    path = folder / "site.toml"
    path.write_text(
        f'[site]\nname = "A"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n[compute]\n{compute}\n'
    )
    return path


def write_federation(folder: Path, stages: str) -> Path:
    path = folder / "federation.toml"
    path.write_text(
        '[federation]\nname = "f"\nsites = ["A"]\n[server]\naddress = "localhost:1"\n'
        '[task]\nlabels = ["a", "b", "c"]\n[features]\nencoder = "tiny-vit"\nwidth = 48\npatch_px = 128\n' + stages
    )
    return path


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    """A hospital with a GPU of 8 GB, planned for where there may be none."""
    return write_site(tmp_path, 'device = "cuda"\nvram_gb = 8\nprecision = "float32"')


def plan(config: Path, *arguments: str | Path, columns: str = "200") -> Run:
    return fedpath("client", "plan", "--config", config, *arguments, environment={"COLUMNS": columns})


def numbers_after(text: str, label: str) -> list[float]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return [float(word) for word in line.removeprefix(label).split() if word.replace(".", "", 1).isdigit()]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_says_the_choice_its_peak_by_part_and_what_each_means_saves(gpu: Path, columns: str) -> None:
    run = plan(gpu, columns=columns)
    assert run.code == 0, run.err
    assert max(map(len, run.out.splitlines())) <= int(columns)
    text = " ".join(run.out.split())
    assert "resnet50-layer4, head clam-sb, patches of 224 px" in text
    assert "patches of a slide 512 (of 64 to 512)" in text
    assert "computed twice the trained stages, 1.27 × the operations" in text
    (together,) = numbers_after(run.out, "together")
    parts = ("weights", "gradients", "the optimizer", "kept", "the patches at work", "features and head", "the GPU")
    found = [line for line in run.out.splitlines() if line.startswith(parts)]
    assert sum(float(line.split()[-1]) for line in found) == pytest.approx(together, abs=0.02)
    assert together < 8
    assert numbers_after(run.out, "allowed") == [8]
    if columns == "120":
        without, with_, saved = numbers_after(run.out, "compute trained stages twice")[:3]
        assert with_ == together
        assert saved == pytest.approx(without - with_, abs=0.02)


def test_plans_the_fine_tune_stage_of_a_federation(tmp_path: Path) -> None:
    site = write_site(tmp_path, 'device = "cpu"\nvram_gb = 1\nprecision = "bfloat16"')
    stages = (
        '[[stage]]\nkind = "select"\n[[stage]]\nkind = "fine-tune"\nmodel = { name = "abmil" }\n'
        'tuning = { adapter = "lora", patches = { most = 40, least = 8 } }\n'
    )
    run = plan(site, "--federation", write_federation(tmp_path, stages))
    assert run.code == 0, run.err
    text = " ".join(run.out.split())
    assert "tiny-vit, adapters only, head abmil, patches of 128 px" in text
    assert "40 (of 8 to 40)" in text
    assert "matrix products in bfloat16" in text
    assert "context" not in text  # that is a GPU's
    assert "GPU here" not in text


def test_a_computer_without_a_gpu_is_planned_by_its_free_memory(tmp_path: Path) -> None:
    run = plan(write_site(tmp_path, 'device = "cpu"'), *SMALL)
    assert run.code == 0, run.err
    (allowed,) = numbers_after(run.out, "allowed")
    assert allowed > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--encoder", "resnet5"), ("'resnet5'", "did you mean 'resnet50'?")),
        (("--patches", "40", "--least", "60"), ("--least", "least (60) is above most (40)")),
        (("--adapter", "lora"), ("attention layers", '"none"')),
        (("--adapter", "lor"), ("--adapter", "'none' or 'lora'")),
        (("--head", "clam"), ("'clam'", "did you mean")),
        (("--head", "bd"), ("'bd'", "clinical")),
        (("--encoder", "vit-small-16", "--patch", "256"), ("224 px", "features.patch_px")),
    ],
)
def test_wrong_questions_are_answered_in_two_lines(
    gpu: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    plan(gpu, *arguments).assert_error(2, *words)


def test_no_patches_at_all_are_no_plan(gpu: Path) -> None:
    run = plan(gpu, "--patches", "0")
    assert run.code == 2
    assert "--patches" in run.err


def test_a_budget_that_is_too_small_says_which_would_do(tmp_path: Path) -> None:
    run = plan(write_site(tmp_path, 'device = "cuda"\nvram_gb = 0.5'), *SMALL)
    run.assert_error(2, "no plan fits 0.5 GB", "64 patches of 64 px", "compute.vram_gb = ")


def test_a_federation_without_fine_tuning_is_no_question(gpu: Path) -> None:
    federation = write_federation(gpu.parent, "")
    plan(gpu, "--federation", federation).assert_error(2, str(federation), "fine-tune")
    both = plan(gpu, "--federation", federation, "--patches", "3")
    both.assert_error(2, "--patches", "--federation")
