"""Two small hospitals with tables for bags, for tests of `fedpath train`."""

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
