import base64
import dataclasses
import html.parser
import itertools
import json
import re

import pytest

from fedpath.core.report import FileEntry, Interval, Refusal, render_report, summary, wording

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Collects elements, ids and text, and insists that tags nest."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.pieces = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces).replace("\u00a0", " "))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.pieces.append(text)


def test_page_refers_to_nothing_outside(data):
    page = render_report(data)
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "poster", "action", "data"}:
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:50])
    assert "@import" not in page
    assert not re.search(r"https?:", page)
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_page_is_sound(data):
    reader = Reader(render_report(data))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in {"row", "col", "rowgroup"}
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_everything_of_a_site_is_text(data):
    evil = '<script>alert("x")</script>&amp;'

    def spoil(value):
        return f"{value}{evil}"

    hospitals = tuple(dataclasses.replace(h, name=spoil(h.name), note=evil) for h in data.hospitals)
    spoiled = dataclasses.replace(
        data,
        federation=dataclasses.replace(
            data.federation, name=evil, labels=("normal", evil), settings=((evil, evil),), encoder=evil
        ),
        hospitals=hospitals,
        rounds=tuple(
            dataclasses.replace(
                r,
                sites=tuple(dataclasses.replace(s, site=spoil(s.site)) for s in r.sites),
                asked=tuple(map(spoil, r.asked)),
                answered=tuple(map(spoil, r.answered)),
                refused=(Refusal(evil, evil),),
            )
            for r in data.rounds
        ),
        models=tuple(
            dataclasses.replace(
                m,
                site=spoil(m.site) if m.site else None,
                predictions=tuple(dataclasses.replace(p, site=spoil(p.site)) for p in m.predictions),
            )
            for m in data.models
        ),
        departures=tuple(dataclasses.replace(d, site=spoil(d.site), head='"><script>') for d in data.departures),
        heatmaps=tuple(
            dataclasses.replace(h, site=spoil(h.site), slide_id=evil, label=evil, caption=evil) for h in data.heatmaps
        ),
        files=(FileEntry(evil, evil),),
        notes=(evil,),
    )
    page = render_report(spoiled)
    reader = Reader(page)
    assert "<script" not in page
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in Reader(render_report(data)).elements}
    assert reader.text.count('alert("x")') > 20


def test_page_and_summary_say_the_same(data):
    reader, figures = Reader(render_report(data)), summary(data)
    for name, model in figures["models"].items():
        label = wording.auc_label(Interval(**model["test_auc"]))
        assert label in reader.text, name
        for value in model["per_hospital"].values():
            assert wording.auc(value) in reader.text
    assert f"Alone, on average {wording.auc(figures['mean_of_local'])}" in reader.text
    for sentence in wording.verdict(data):
        assert sentence in reader.text
        assert sentence in figures["headline"]
    for left in figures["what_left"].values():
        assert wording.size(left["bytes"]) in reader.text
        assert left["bytes"] == sum(message["bytes"] for message in left["messages"])
    assert f"{figures['best_round']} (best)" in reader.text
    assert figures["federated_minus_mean_of_local"] == figures["federated"] - figures["mean_of_local"]
    assert figures["pooled_minus_federated"] == figures["pooled"] - figures["federated"]
    assert figures["federated"] == figures["models"]["federated"]["test_auc"]["value"]


def test_heatmaps_are_inside_the_page(data):
    images = [attributes["src"] for tag, attributes in Reader(render_report(data)).elements if tag == "img"]
    assert [base64.b64decode(src.split(",")[1]) for src in images] == [h.png for h in data.heatmaps]


def test_participation_is_told_as_it_was(data):
    text = Reader(render_report(data)).text
    assert "All hospitals took part in 7 of 10 rounds." in text
    assert "Round 2: update of C refused, image/attention.weight holds NaN or infinite values" in text
    assert "Round 4: no answer from B" in text
    assert "Round 3: A did not answer in time, it is not connected" in text
    third = summary(data)["rounds"][2]
    assert third["late"] == [{"site": "A", "reason": "it is not connected"}]
    assert (third["answered"], third["patients"]) == (["B", "C"], 16)
    full = dataclasses.replace(data, rounds=data.rounds[4:])
    assert (
        "All 3 hospitals took part in every one of 6 rounds; no update was refused." in Reader(render_report(full)).text
    )


def test_a_broken_audit_log_is_said_loudly(data):
    broken = dataclasses.replace(data.departures[0], intact=False)
    page = render_report(dataclasses.replace(data, departures=(broken,)))
    assert "broken: the log was changed after it was written" in page
    assert "whole" not in Reader(page).text.split("What left each hospital")[1].split("Where the model looked")[0]


def test_same_data_same_bytes(data):
    assert render_report(data) == render_report(data)
    assert summary(data) == summary(data)


def test_summary_is_json_without_nan(data):
    entry = dataclasses.replace(data.rounds[0].sites[0], training_loss=float("nan"), validation_auc=None)
    first = dataclasses.replace(data.rounds[0], sites=(entry,), validation_auc=float("inf"))
    figures = summary(dataclasses.replace(data, rounds=(first, *data.rounds[1:])))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["rounds"][0]["sites"]["A"]["training_loss"] is None
    assert figures["rounds"][0]["validation_auc"] is None


@pytest.mark.parametrize("bare", ["models", "rounds", "departures", "heatmaps", "durations", "files", "notes"])
def test_page_without_a_part(data, bare):
    change = {bare: ()} | ({"best_round": None} if bare == "rounds" else {})
    Reader(render_report(dataclasses.replace(data, **change)))


def test_bags_without_slides(data):
    federation = dataclasses.replace(data.federation, mpp=None, patch_px=None, labels=("non-musk", "musk"))
    hospitals = tuple(dataclasses.replace(h, patches=None, mpp_level0=None, note=None) for h in data.hospitals)
    bags = dataclasses.replace(data, federation=federation, hospitals=hospitals, heatmaps=(), departures=(), notes=())
    text = Reader(render_report(bags)).text
    assert "a random musk bag above a random non-musk one" in text
    assert "test slides" not in text
    assert "Scanner" not in text
