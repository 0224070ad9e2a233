"""A federation that trains a model of a user's own package, where the hospitals allow it."""

import json
import os
from pathlib import Path

import pytest
from federation import Federation
from own_package import installed, write_package
from safetensors.torch import load_file

from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the model ``my-mil``, installed for every process that the test starts."""
    folder = tmp_path / "packages"
    write_package(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return folder


def test_own_models_train_where_they_are_allowed_and_are_refused_by_name_elsewhere(
    federation: Federation, package: Path
) -> None:
    federation.configure(rounds=2, min_sites=2, model='[model]\nname = "my-mil"\noptions = { hidden = 5 }')
    for site in "AB":
        with (federation.site(site) / "site.toml").open("a") as file:
            file.write('[policy]\nown_models = ["my-mil"]\n')
    # All three must be there before the coordinator asks: it starts with two, so it is started last.
    federation.start_sites()
    for site in federation.sites:
        federation.wait_for_output(site, "waiting up to")
    federation.start_server()
    assert [federation.wait(name) for name in ("server", "A", "B", "C")] == [0, 0, 0, 5]

    reason = "site C refuses: model 'my-mil' is none of fedpath's here, and not among the own_models that may run"
    assert f"site C: refused: {reason}" in federation.output("server")
    assert reason in federation.output("C")
    # C has it installed like the others, and never imported it; the coordinator did, to build the first model.
    imported = {path.name.removeprefix("imported-by-") for path in package.glob("imported-by-*")}
    assert imported == {"A", "B", "nobody"}

    run = federation.run_folder()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["sites"], set(summary["refused"])) == (["A", "B"], {"C"})
    for manifest in read_rounds(run):
        assert {site: part.outcome for site, part in manifest.sites.items()} == {"A": "answered", "B": "answered"}

    best = run / "best.safetensors"
    state = load_file(best)
    assert {name.partition(".")[0] for name in state} == {"head", "reduce", "score"}  # the module's own names
    assert not any("num_batches" in name for name in state)
    assert state["reduce.1.running_var"].ne(1).all()  # the mean of what both hospitals saw
    with installed(package):
        ours, metadata = load_model(best)
        theirs, _ = load_model(federation.site("A") / "state" / run.name / "federated.safetensors")
        from mymil import MyMIL
    assert metadata["package"] == "my-package 1.0"
    assert all(theirs.state_dict()[name].equal(value) for name, value in ours.state_dict().items())
    MyMIL(8, 2, hidden=5).load_state_dict(state)


def test_a_hospital_without_the_package_says_which_is_missing(federation: Federation, package: Path) -> None:
    federation.configure(rounds=1, min_sites=3, model='[model]\nname = "my-mil"')
    for site in federation.sites:
        with (federation.site(site) / "site.toml").open("a") as file:
            file.write('[policy]\nown_models = ["my-mil"]\n')
    federation.start_sites("A", "B")
    for site in "AB":
        federation.wait_for_output(site, "waiting up to")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ["PYTHONPATH"].partition(os.pathsep)[2])
        federation.start_sites("C")
    federation.start_server()
    assert [federation.wait(name) for name in ("server", "A", "B", "C")] == [6, 5, 5, 5]
    missing = "no package installed here names model 'my-mil' (entry point 'my-mil' of group fedpath.models)"
    assert missing in federation.output("server")
    assert f"{missing}\nremedy: install my-package 1.0\n" in federation.output("C")
    for name in ("server", "A", "B", "C"):
        assert "Traceback" not in federation.output(name)
