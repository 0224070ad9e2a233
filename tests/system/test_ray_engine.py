"""`[aggregation] engine = "ray"`: the bits of the local engine, whoever dies, whatever the cluster sees."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from federation import WIDTH, Federation, wait_until
from in_process import write_sites
from ray_cluster import Head, actors_of, cluster
from stored_updates import counted, drawn, stored

from fedpath.cli.simulate.coordinate import coordinate
from fedpath.cli.simulate.federation import simulated
from fedpath.cli.simulate.processes import processes_on
from fedpath.cli.simulate.talk import RayTalk
from fedpath.core.config import FederationConfig, load_site
from fedpath.core.config.federated import AggregationSection
from fedpath.core.errors import ConfigError, FederationError, StoppedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.stored import BLOCK, CHANGES, SCALES
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.monitoring.children import Mailbox
from fedpath.server.aggregation import Combined, Counted, LocalPasses, combiner
from fedpath.server.aggregation.blocks import Engine
from fedpath.server.aggregation.engine import Cluster, engine_of
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

SHAPES = {"image/w": (9, BLOCK), "image/b": (7,), "clinical/w": (3, 1000), "norm/s": (), "image/long": (2 * BLOCK + 3,)}
"""Files of more and of less than what is mapped, several pieces of eight updates, arrays of less than a block."""
SETTINGS: list[dict[str, Any]] = [
    {"combine": "mean"},
    {"combine": "mean", "clip_norm": 2.0},
    {"combine": "median"},
    {"combine": "trimmed-mean", "byzantine": 1},
    {"combine": "geometric-median"},
    {"combine": "krum", "byzantine": 1},
    {"combine": "multi-krum", "byzantine": 1},
    {"combine": "bulyan", "byzantine": 0},
]
REFERENCE = drawn(99, SHAPES)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> list[Counted]:
    """Of eight hospitals: in float32, float16, int8 and as changes; some without a group, one late."""
    folder, rest = tmp_path_factory.mktemp("updates"), {"image/b": SHAPES["image/b"], "image/w": SHAPES["image/w"]}
    made = [counted(folder, name, drawn(seed, SHAPES), seed) for seed, name in enumerate("ABCD", start=3)]
    halves = {name: array.astype(np.float16) for name, array in drawn(10, rest).items()}
    eighths = {name: np.asarray(array * 20).astype(np.int8) for name, array in drawn(11, SHAPES).items()}
    scales = "{" + ", ".join(f'"{name}": 0.05' for name in SHAPES) + "}"
    patients = {"image": 11.0, "clinical": 5.0, "norm": 11.0}
    made += [
        counted(folder, "E", halves, 8),
        Counted("F", stored(folder, "F", eighths, {SCALES: scales, CHANGES: "true"}), patients),
        counted(folder, "G", drawn(12, rest), 4.5, base=drawn(13, SHAPES)),
        counted(folder, "H", {"image/b": np.ones(7, np.float32)}, 2),
    ]
    return made


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with cluster() as head:
        yield head


def settings_of(values: dict[str, Any], **more: Any) -> AggregationSection:
    return AggregationSection(engine="ray", ray_workers=2, **values, **more)


def combine(engine: Engine, updates: list[Counted], values: dict[str, Any], reference: Arrays = REFERENCE) -> Combined:
    adding = combiner(reference, AggregationSection(**values), engine)
    for update in updates:
        adding.add(update)
    return adding.result()


def assert_same(one: Combined, other: Combined) -> None:
    assert hash_arrays(one.arrays) == hash_arrays(other.arrays)
    assert (one.patients, one.chosen, one.too_few) == (other.patients, other.chosen, other.too_few)


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_the_bits_of_the_local_engine(head: Head, updates: list[Counted], tmp_path: Path) -> None:
    heard: list[Event] = []
    with (
        Mailbox(tmp_path, "children", EventLog(None, heard.append)),
        engine_of(settings_of({}, ray_address=head.address), EventLog(), threading.Event()) as engine,
    ):
        for values in SETTINGS:
            assert_same(combine(engine, updates[::-1], values), combine(LocalPasses, updates, values))
        assert hash_arrays(combine(engine, [], {}).arrays) == hash_arrays(REFERENCE)
        assert len(actors_of(head.process.pid, "Hand")) == 2
    wait_until(lambda: not actors_of(head.process.pid, "Hand"), "its actors have left the cluster")
    told = [event.values for event in heard if event.kind == "combiner"]
    assert [values["pieces"] for values in told] == sorted(values["pieces"] for values in told)
    assert told[-1]["pieces"] >= len(SETTINGS)
    assert told[-1]["memory_bytes"] > 2**20


def test_machines_that_do_not_see_the_files_are_sent_them(tmp_path: Path) -> None:
    """The cluster has another folder under the same name."""
    shapes = {"image/w": (3, BLOCK)}
    made = [counted(tmp_path, name, drawn(seed, shapes), seed) for seed, name in enumerate("ABCDE", start=1)]
    made[4] = replace(made[4], base=drawn(7, shapes))
    reference = drawn(8, shapes)
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$0" "$@"']
    with (
        cluster(hidden) as head,
        engine_of(settings_of({}, ray_address=head.address), EventLog(), threading.Event()) as engine,
    ):
        for values in ({}, {"combine": "multi-krum", "byzantine": 1}):
            assert_same(combine(engine, made, values, reference), combine(LocalPasses, made, values, reference))


# --- whoever dies -----------------------------------------------------------------------------------------------------


def test_actors_that_are_killed_are_replaced_and_the_round_completes(head: Head, updates: list[Counted]) -> None:
    events: list[Event] = []
    log = EventLog(None, events.append)
    killed: list[psutil.Process] = []
    with engine_of(settings_of({}, ray_address=head.address), log, threading.Event()) as engine:
        at_rest = combine(LocalPasses, updates, {})
        assert_same(combine(engine, updates, {}), at_rest)
        killed += actors_of(head.process.pid, "Hand")  # while they have nothing to do
        for process in killed:
            process.kill()
        assert_same(combine(engine, updates, {}), at_rest)
        passes = engine(REFERENCE)
        do = passes._cluster.do  # type: ignore[attr-defined]

        def and_kill(of_pass: Any, pieces: Any, fill: Any, take: Any) -> None:
            def take_and_kill(piece: Any, values: Any) -> None:
                take(piece, values)
                if len(killed) == 2:  # while they work on the other pieces
                    killed.extend(actors_of(head.process.pid, "Hand"))
                    for process in killed[2:]:
                        process.kill()

            do(of_pass, pieces, fill, take_and_kill)

        passes._cluster.do = and_kill  # type: ignore[attr-defined]
        assert_same(combine(lambda _: passes, updates, {}), at_rest)
    assert len(killed) == 4
    assert [event.kind for event in events].count("combiner_replaced") >= 3


def test_the_process_that_talks_to_ray_may_die(head: Head, updates: list[Counted]) -> None:
    events: list[Event] = []
    cluster = Cluster(head.address, 2, EventLog(None, events.append), threading.Event())
    try:
        cluster.open()
        assert cluster._child is not None
        os.kill(cluster._child[0].pid or 0, signal.SIGKILL)
        assert_same(combine(cluster.passes, updates, {}), combine(LocalPasses, updates, {}))
    finally:
        cluster.close()
    assert [event.kind for event in events] == ["cluster_lost"]


def test_a_cluster_that_is_gone_is_an_error_that_says_so(updates: list[Counted]) -> None:
    with cluster() as head:
        settings = settings_of({}, ray_address=head.address)
        with engine_of(settings, EventLog(), threading.Event()) as engine:
            combine(engine, updates, {})
            head.kill()
            with pytest.raises(FederationError, match=f"aggregation.ray_address {head.address}: the Ray") as caught:
                combine(engine, updates, {})
    assert "the updates are kept" in caught.value.remedy


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"aggregation.ray_address 127\.0\.0\.1:1: no Ray cluster there"),
        engine_of(settings_of({}, ray_address="127.0.0.1:1"), EventLog(), threading.Event()),
    ):
        pass


def test_who_is_asked_to_stop_does_not_wait_for_the_cluster(head: Head, updates: list[Counted]) -> None:
    stop = threading.Event()
    with engine_of(settings_of({}, ray_address=head.address), EventLog(), stop) as engine:
        combine(engine, updates, {})
        stopped = actors_of(head.process.pid, "Hand")
        for process in stopped:
            process.suspend()
        stop.set()
        with pytest.raises(StoppedError):
            combine(engine, updates, {})
        for process in stopped:
            process.resume()


# --- concurrent runs --------------------------------------------------------------------------------------------------


def test_runs_share_a_cluster(head: Head, updates: list[Counted]) -> None:
    """Three coordinators with two actors each on two CPUs: none waits until another has ended."""
    settings = settings_of({}, ray_address=head.address)
    wanted = combine(LocalPasses, updates, {})
    all_there = threading.Barrier(3, timeout=120)

    def one(_: int) -> None:
        with engine_of(settings, EventLog(), threading.Event()) as engine:
            for _ in range(3):
                all_there.wait()
                assert_same(combine(engine, updates, {}), wanted)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_federation_ends_with_the_weights_of_the_local_engine(federation: Federation, head: Head) -> None:
    """One run on Ray, then one without; the agents' training is the same."""
    results = []
    for number, aggregation in enumerate(("", f'engine = "ray"\nray_workers = 2\nray_address = "{head.address}"\n')):
        federation.configure(rounds=2, training=f"[aggregation]\n{aggregation}")
        names, state = [f"server-{number}"], federation.folder / f"coordinator-{number}"
        federation.start_server(state=state, name=names[0])
        for site in federation.sites:
            names.append(f"{site}-{number}")
            federation.start(names[-1], federation.join_arguments(site))
        assert [federation.wait(name) for name in names] == [0] * len(names)
        results.append([manifest.result for manifest in read_rounds(federation.run_folder(state))])
    assert results[0] == results[1]


def test_a_simulation_combines_on_its_own_cluster(tmp_path: Path) -> None:
    """What the processes of a simulation hold does not keep the actors waiting."""
    config = simulated(
        FederationConfig.model_validate(
            {
                "federation": {"name": "test", "sites": ["A", "B", "C"]},
                "server": {"address": "localhost:1"},
                "task": {"labels": ["normal", "tumour"]},
                "features": {"encoder": "noise", "width": WIDTH, "mpp": 0.5, "patch_px": 128},
                "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
                "training": {"rounds": 1, "learning_rate": 0.01},
            }
        ),
        "ABC",
    )
    write_sites(tmp_path, "ABC")
    results = []
    with processes_on("local", 2, 0.0) as processes:
        for engine in ("local", "ray"):
            out = tmp_path / engine
            (out / "answers").mkdir(parents=True)
            hospitals = {
                name: load_site(tmp_path / name / "site.toml").model_copy(update={"state": out / "state" / name})
                for name in "ABC"
            }
            talk = RayTalk(hospitals, "test", processes, out / "answers", EventLog())
            asked = config.model_copy(update={"aggregation": AggregationSection(engine=engine, ray_workers=2)})
            coordinate(asked, "run", out / "run", talk, EventLog(), threading.Event())
            results.append([manifest.result for manifest in read_rounds(out / "run")])
    assert results[0] == results[1]
