"""What each field contributes to the gap of two protocols, on records whose effects are known."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from results.__main__ import main
from results.errors import InputError
from results.explain import (
    QUESTIONS_FILE,
    AskedPair,
    Explanation,
    Switch,
    differing,
    draw_waterfall,
    explanation_table,
    explanations,
    gap,
    heading,
    remember,
    remembered,
    sentence,
)
from results.plots import NothingToDrawError
from results.published import published_figure
from results.schema import Geometry, Protocol, Record, Score
from results.store import read_records, write_record
from tests.results.factory_records import accuracy_outcomes, card, protocol, record

GEOMETRY = Geometry(mode="shorter", resize=36, crop=32)
A = protocol("knn", ("k=20",), "k=20", variant="a", params={"k": [20], "temperature": 0.07, "normalise": True})
B = protocol("knn", ("k=20", "k=200"), "k=200", variant="b", geometry=GEOMETRY.model_copy(update={"resize": 40}),
             params={"k": [20, 200], "temperature": 0.2, "normalise": False})  # fmt: skip
FIELDS = {"geometry.resize": 40, "temperature": 0.2, "normalise": False}
EFFECTS = {"geometry.resize": 3.0, "temperature": -1.0, "normalise": 0.5}
TOGETHER = 2.0  # of resize and temperature


def switched(names: frozenset[str]) -> Protocol:
    if names == frozenset(FIELDS):
        return B
    params = {**A.params, **{name: FIELDS[name] for name in names if name in A.params}}
    geometry = B.geometry if "geometry.resize" in names else A.geometry
    labels = tuple(sorted(f"{name}={FIELDS[name]}" for name in names))
    return A.model_copy(update={"params": params, "geometry": geometry, "overrides": labels})


def score(names: frozenset[str]) -> float:
    return 50 + sum(EFFECTS[name] for name in names) + TOGETHER * ({"geometry.resize", "temperature"} <= names)


def write(root: Path, corners: list[frozenset[str]]) -> None:
    for names in corners:
        scores = {"k=20": Score(value=score(names), selection="fixed")}
        write_record(root, record(card("net"), switched(names), scores=scores))


def every_corner() -> list[frozenset[str]]:
    return [frozenset(c) for size in range(len(FIELDS) + 1) for c in combinations(FIELDS, size)]


def explained(root: Path) -> Explanation:
    (one,) = explanations(read_records(root)[0], A.id, B.id)
    return one


def test_shapley_values_of_a_whole_lattice(tmp_path: Path) -> None:
    write(tmp_path, every_corner())
    one = explained(tmp_path)
    assert one.orders == 6
    assert one.column == "k=20"
    shares = {switch.field: switch.share for switch in one.switches}
    assert shares == pytest.approx({"geometry.resize": 4.0, "temperature": 0.0, "normalise": 0.5})
    assert sum(shares.values()) == pytest.approx(one.score_b - one.score_a)
    assert {s.field: s.forward for s in one.switches} == pytest.approx(
        {"geometry.resize": 3.0, "temperature": 1.0, "normalise": 0.5}
    )
    assert {s.field: s.backward for s in one.switches} == pytest.approx(
        {"geometry.resize": 5.0, "temperature": -1.0, "normalise": 0.5}
    )
    assert all(switch.low is None for switch in one.switches)  # no outcomes per item


def test_two_chains_are_enough(tmp_path: Path) -> None:
    names = list(FIELDS)
    chains = [frozenset(order[:i]) for order in (names, names[::-1]) for i in range(len(names) + 1)]
    write(tmp_path, list(dict.fromkeys(chains)))
    one = explained(tmp_path)
    assert one.orders == 2
    assert {s.field: s.share for s in one.switches} == pytest.approx(
        {"geometry.resize": 4.0, "temperature": 0.0, "normalise": 0.5}
    )


def test_a_record_that_differs_in_another_field_or_seed_is_not_in_between(tmp_path: Path) -> None:
    first = next(iter(FIELDS))
    corners = every_corner()
    write(tmp_path, [c for c in corners if c != {first} and len(c) != len(FIELDS) - 1])
    decoy = switched(frozenset({first})).model_copy(update={"variant": "decoy", "test_split": "other"})
    scores = {"k=20": Score(value=99.0, selection="fixed")}
    write_record(tmp_path, record(card("net"), decoy, scores=scores))
    with pytest.raises(InputError, match=f"no record of {re.escape(A.id)} with {first} of"):
        explained(tmp_path)
    for asked, seed in ((A, 0), (B, 1)):
        write_record(tmp_path / "seeds", record(card("net"), asked, scores=scores, seeds=(seed,)))
    with pytest.raises(InputError, match="no encoder has records of both"):
        explained(tmp_path / "seeds")


def test_a_gap_to_a_published_figure_is_taken_apart(tmp_path: Path) -> None:
    figure = published_figure("MoCo v2/resnet50_8xb32-coslr-200e", "knn", column="k=10")  # 55.6
    asked = protocol("knn", ("k=10", "k=20"), "k=10", variant="mmselfsup", dataset="imagenet")

    def measured(values: dict[str, float], error: float, **about: Any) -> Record:
        scores = {c: Score(value=v, standard_error=error, selection="fixed") for c, v in values.items()}
        found = record(card("net"), asked, scores=scores, embedded=False)
        return found.model_copy(update={"dataset": found.dataset.model_copy(update=about)})

    shares = {"temperature": -1.0, "normalise": -4.9, "crop": 2.0}
    switches = tuple(Switch(name, "1", "2", share, share, share, None, None) for name, share in shares.items())
    between = Explanation("net", "imagenet", "k=10", A.id, B.id, 54.9, 51.0, switches, 6)
    published, mine = measured({"k=10": 54.9}, 0.2), measured({"k=10": 51.0, "k=20": 53.0}, 0.9)
    one = gap(figure, published, mine, "k=20", between)
    assert (one.as_published, one.mine, one.standard_error) == (54.9, 53.0, 0.2)
    assert (one.selection, one.explained, one.left) == pytest.approx((2.0, -1.9, -0.7))
    assert [share for _, share in one.settings] == [-4.9, 2.0, -1.0]
    assert one.comparable
    assert "Your 53.00 is 2.60 below the published 55.6" in sentence(one)
    assert "Your 56.00 is 0.40 above the published 55.6" in sentence(replace(one, mine=56.0))
    for about in ({"official": False}, {"embedded": True}):
        assert not gap(figure, measured({"k=10": 54.9}, 0.2, **about), mine, "k=20", between).comparable


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_a_plain_enumeration_and_sum_to_the_gap(tmp_path: Path, seed: int) -> None:
    """Every order of switching, one after the other, on scores that follow no rule."""
    drawn = np.random.default_rng(seed).uniform(0, 100, 2 ** len(FIELDS))
    scores = dict(zip(every_corner(), map(float, drawn), strict=True))
    for names, value in scores.items():
        found = {"k=20": Score(value=value, selection="fixed")}
        write_record(tmp_path, record(card("net"), switched(names), scores=found))
    one = explained(tmp_path)
    effects: dict[str, list[float]] = {name: [] for name in FIELDS}
    for order in permutations(FIELDS):
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            effects[name].append(scores[before | {name}] - scores[before])
    shares = {switch.field: switch.share for switch in one.switches}
    assert shares == pytest.approx({name: sum(steps) / len(steps) for name, steps in effects.items()}, abs=1e-10)
    for steps in (
        [s.share for s in one.switches],
        [s.forward for s in one.switches],
        [s.backward for s in one.switches],
    ):
        assert sum(steps) == pytest.approx(one.score_b - one.score_a, abs=1e-10)
    assert {stored.record.protocol.id for stored in one.records} == {switched(names).id for names in scores}
    assert one.records[0].record.protocol.id == A.id
    assert one.records[-1].record.protocol.id == B.id


def test_fields_that_were_switched_together_are_one_row(tmp_path: Path) -> None:
    corners = [corner for corner in every_corner() if ("temperature" in corner) == ("normalise" in corner)]
    write(tmp_path, corners)
    records = read_records(tmp_path)[0]
    (one,) = explanations(records, A.id, B.id, together=("normalise,temperature",))
    assert one.orders == 2
    assert [(s.field, s.a, s.b) for s in one.switches] == [
        ("geometry.resize", "36", "40"), ("temperature and normalise", "0.07 and True", "0.2 and False"),
    ]  # fmt: skip
    assert [s.share for s in one.switches] == pytest.approx([4.0, 0.5])
    assert sum(s.share for s in one.switches) == pytest.approx(one.score_b - one.score_a)
    with pytest.raises(InputError, match=r"with geometry\.resize, temperature of knn\.b@1; measure"):
        explained(tmp_path)
    for wrong, fault in (("k", r"do not differ in it; the fields are geometry\.resize, "), ("temperature", "twice")):
        with pytest.raises(InputError, match=fault):
            explanations(records, A.id, B.id, together=("temperature,normalise", wrong))
    asked = AskedPair(A.id, B.id, together=("temperature,normalise",))
    assert remember(tmp_path, asked)
    assert remembered(tmp_path) == [asked]
    (tmp_path / QUESTIONS_FILE).write_text('{"a": "x", "b": "y", "column": null, "encoder": ["*"]}\n')  # of before
    assert remembered(tmp_path) == [AskedPair("x", "y")]


def test_a_field_that_one_side_leaves_out_is_a_difference(tmp_path: Path) -> None:
    a = protocol("voc07_svm", ("embed",), "embed", variant="a", params={"folds": 3})
    b = a.model_copy(update={"params": {**a.params, "ap_rule": "11point"}, "overrides": ("ap_rule=11point",)})
    for asked, value in ((a, 20.0), (b, 22.0)):
        write_record(tmp_path, record(card("net"), asked, scores={"embed": Score(value=value, selection="cv")}))
    (one,) = explanations(read_records(tmp_path)[0], a.id, b.id)
    assert [(s.field, s.a, s.b, s.share) for s in one.switches] == [("ap_rule", "default", "11point", 2.0)]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, [frozenset(), frozenset(FIELDS)])
    with pytest.raises(InputError, match=r"no record of knn\.a@1 with geometry\.resize of knn\.b@1; measure"):
        explained(tmp_path)
    records = read_records(tmp_path)[0]
    with pytest.raises(InputError, match=r"no encoder has records of both knn\.a@1 and knn\.c@1"):
        explanations(records, A.id, "knn.c@1")
    with pytest.raises(InputError, match="no column k=5 in common"):
        explanations(records, A.id, B.id, "k=5")


def test_other_protocols_are_no_corners(tmp_path: Path) -> None:
    write(tmp_path, every_corner())
    odd = A.model_copy(update={"params": {**A.params, "temperature": 0.5}, "overrides": ("temperature=0.5",)})
    more = A.model_copy(update={"params": {**A.params, "more": 1}, "overrides": ("more=1",)})
    for other in (odd, more):
        scores = {"k=20": Score(value=1.0, selection="fixed")}
        write_record(tmp_path, record(card("net"), other, scores=scores))
    assert sum(switch.share for switch in explained(tmp_path).switches) == pytest.approx(4.5)


def test_columns_are_no_difference() -> None:
    assert set(differing(A, B)) == set(FIELDS)
    assert differing(A, A) == {}


def test_intervals_are_paired(tmp_path: Path) -> None:
    """A switch that changes no outcome has no uncertainty, one that changes some has."""
    outcomes = accuracy_outcomes(("k=20",), 0.5, 0)
    changed = {**outcomes, "correct/k=20": outcomes["correct/k=20"] | (np.arange(220) % 5 == 0)}
    b = A.model_copy(update={"variant": "b", "params": {**A.params, "temperature": 0.2, "normalise": False}})
    for names, own in (((), outcomes), (("temperature",), outcomes), (("normalise",), changed), (None, changed)):
        corner = b if names is None else switched(frozenset(names))
        write_record(tmp_path, record(card("net"), corner, own), own)
    (one,) = explanations(read_records(tmp_path)[0], A.id, b.id)
    by_field = {switch.field: switch for switch in one.switches}
    still, moved = by_field["temperature"], by_field["normalise"]
    assert (still.share, still.low, still.high) == pytest.approx((0.0, 0.0, 0.0))
    assert moved.low is not None
    assert moved.high is not None
    assert 0 < moved.low < moved.share < moved.high


def test_the_command_writes_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, picture = tmp_path / "records", tmp_path / "waterfall.png"
    write(root, every_corner())
    assert main(["explain", A.id, B.id, "--records", str(root), "--picture", str(picture)]) == 0
    page = capsys.readouterr().out
    assert re.search(r"\| resize \(geometry\.resize\) +\| 36", page)
    assert "+4.00" in page
    assert "all 6 orders (Shapley value)" in page
    assert Image.open(picture).size[0] > 500
    assert remembered(root) == [AskedPair(A.id, B.id)]
    assert main(["explain", A.id, B.id, "--records", str(root)]) == 0
    assert remembered(root) == [AskedPair(A.id, B.id)]
    table = explanation_table(explained(root))
    assert table.rows[-1].cells[2].text == "+4.50"
    assert table.title == "Nearest-neighbour classification: a and b"
    assert table.lines[0].startswith(f"A: {A.id}; B: {B.id}. ")
    same = replace(explained(root), b=f"{A.id}+temperature=0.2")
    assert heading(same) == "Nearest-neighbour classification, a: effect of resize, temperature and normalised features"
    assert heading(replace(same, switches=same.switches[:1])).endswith("a: effect of resize")
    assert heading(replace(same, switches=same.switches * 2)).endswith("a: effect of 6 settings")
    with pytest.raises(NothingToDrawError, match="no record has an explained difference between protocols"):
        draw_waterfall([], picture)
    assert main(["explain", A.id, "nothing", "--records", str(root)]) == 2
    assert len(remembered(root)) == 1  # what has no answer is not kept


# ---- the questions kept with the records

ONE = AskedPair("knn.a@1", "knn.b@1+temperature=0.2", None, ("net*", "другая"))
TWO = AskedPair("knn.a@1", "knn.c@1", "k=20")


def test_questions_are_kept_once_and_are_no_records(tmp_path: Path) -> None:
    assert remembered(tmp_path) == []
    assert remember(tmp_path, ONE)
    assert remember(tmp_path, TWO)
    assert not remember(tmp_path, ONE)
    assert remembered(tmp_path) == [ONE, TWO]
    assert read_records(tmp_path) == ([], [])


@pytest.mark.parametrize("line", ["{", "[]", '{"a": "x"}', '{"a": 1, "b": "y", "encoder": []}',
                                  '{"a": "x", "b": "y", "encoder": ["*"], "more": 1}'])  # fmt: skip
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    remember(tmp_path, ONE)
    with (tmp_path / QUESTIONS_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=r"explained\.jsonl, line 2 is not a question of `explain`: remove it"):
        remembered(tmp_path)
