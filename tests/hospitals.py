"""Two small hospitals with tables for bags, without clinical data or with some, for tests of `fedpath train`."""

from pathlib import Path

import numpy as np
from command import fedpath

FEDERATION = """
[federation]
name = "small"
sites = ["A", "B"]
[server]
address = "localhost:1"
[task]
labels = ["no", "yes"]
[features]
encoder = "table"
width = 4
[model]
name = "acmil"
options = { inner = 8, attention = 8 }
[training]
rounds = 3
local_epochs = 2
learning_rate = 3e-3
"""
SITE = """
[site]
name = "{name}"
[data]
manifest = "manifest.csv"
features = "features"
"""


def write_hospitals(folder: Path) -> None:
    """federation.toml and two hospitals' cohorts, made from a table by the command."""
    rng = np.random.default_rng(0)
    rows = []
    for bag in range(40):
        positive = bag % 2
        for instance in range(4):
            values = rng.normal(size=4) + (3.0 * positive if instance == 0 else 0.0)
            rows.append(f"{'yes' if positive else 'no'},bag{bag}," + ",".join(f"{value:.4f}" for value in values))
    (folder / "table.csv").write_text("\n".join(rows))
    made = fedpath("cohort", "from-table", folder / "table.csv", "--out", folder, "--sites", "A,B")
    assert made.code == 0, made.err
    assert made.out.splitlines() == [
        f"{folder}/{site}: 20 bags (10 × no, 10 × yes), 80 instances of width 4" for site in "AB"
    ]
    (folder / "federation.toml").write_text(FEDERATION)
    for site in "AB":
        (folder / site / "site.toml").write_text(SITE.format(name=site))


FIELDS = """
[clinical.fields.age]
type = "number"
unit = "years"
minimum = 18
maximum = 110
outcome_derived = false
[clinical.fields.grade]
type = "category"
vocabulary = ["G1", "G2", "G3"]
outcome_derived = false
"""
CLINICAL_FEDERATION = (
    FEDERATION.replace('"acmil"', '"bd"').replace(
        "{ inner = 8, attention = 8 }",
        "{ encoder_options = { inner = 8, attention = 8 }, hidden = 8, prompt = 8 }",
    )
    + FIELDS
)
CLINICAL_SITE = """
[clinical]
table = "clinical.csv"
[clinical.columns]
age = "Age"
grade = "Grade"
"""


def write_clinical_hospitals(folder: Path) -> None:
    """The two hospitals under a model of clinical data: A has a table with holes, B has none."""
    write_hospitals(folder)
    (folder / "federation.toml").write_text(CLINICAL_FEDERATION)
    rng = np.random.default_rng(1)
    rows = ["patient_id,Age,Grade"]
    for place, path in enumerate(sorted((folder / "A" / "features").glob("*.h5"))):
        age = f"{rng.normal(55 + 10 * (int(path.stem[3:]) % 2), 8):.1f}"
        grade = str(rng.choice(["G1", "G2", "G3"]))
        match place % 5:
            case 0:
                continue  # no row
            case 1:
                rows.append(f"{path.stem},{age},")
            case 2:
                rows.append(f"{path.stem},NA,{grade}")
            case _:
                rows.append(f"{path.stem},{age},{grade}")
    (folder / "A" / "clinical.csv").write_text("\n".join(rows) + "\n")
    (folder / "A" / "site.toml").write_text(SITE.format(name="A") + CLINICAL_SITE)
