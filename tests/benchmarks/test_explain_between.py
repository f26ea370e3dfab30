"""The protocols between two, and that `results explain` finds what `benchmarks explain` measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest

from benchmarks import InputError, explain
from benchmarks.__main__ import main
from benchmarks.explain import ALL_SETS_UP_TO, between, switching_steps
from benchmarks.registry import find_protocol, tasks, with_settings
from results.__main__ import main as results_main
from results.explain import differing, explanations
from results.schema import Protocol, Record, Score
from results.store import read_records, write_record
from tests.results.factory_records import card, record


def labels(a: str, b: str) -> list[tuple[str, ...]]:
    return [protocol.overrides for protocol in between(find_protocol(a), find_protocol(b))]


def test_protocols_that_differ_in_one_field_have_none_between() -> None:
    a, b = find_protocol("knn.mmselfsup@1"), find_protocol("knn.dino@1")
    assert between(a, b) == [a, b]
    assert labels("voc07_svm.mmselfsup@1", "voc07_svm.vissl@1") == [(), ()]


def test_few_fields_give_every_set_of_them() -> None:
    a = find_protocol("knn.mmselfsup@1")
    b = find_protocol("knn.dino@1").changed(temperature=0.2, normalise=False)
    found = between(a, b)
    assert len(found) == 8
    assert found[0] == a
    assert found[-1] == b
    assert [set(protocol.overrides) for protocol in found[1:4]] == [
        {"geometry.interpolation=bicubic"}, {"temperature=0.2"}, {"normalise=False"},
    ]  # fmt: skip
    both = next(p for p in found if {"geometry.interpolation=bicubic", "normalise=False"} == set(p.overrides))
    assert both.geometry == b.geometry
    assert both.params == {**a.params, "normalise": False}
    assert len({protocol.content_sha256() for protocol in found}) == 8


def test_many_fields_are_switched_in_two_orders() -> None:
    a = find_protocol("knn.mmselfsup@1")
    b = find_protocol("knn.dino@1").changed(temperature=0.2, normalise=False, features="feature5")
    sizes = [len(protocol.overrides) for protocol in between(a, b)[1:-1]]
    assert sizes == [1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(
    ("a", "b", "changes", "field"),
    [
        ("voc07_svm.mmselfsup@1", "voc07_svm.vissl@1", (), "costs"),  # 19 and 11
        ("voc07_svm.mmselfsup@1", "voc07_svm.fssb@2", (), "costs"),  # 19 and 26
        ("voc07_svm.mmselfsup@1", "voc07_svm.mmselfsup@1", ("ap_rule=11point",), "ap_rule"),
        ("voc07_svm.mmselfsup@1", "voc07_svm.mmselfsup@1", ("ignore_in_train=drop",), "ignore_in_train"),
        ("knn.mmselfsup@1", "knn.mmselfsup@1", ("temperature=0.2",), "temperature"),
        ("knn.mmselfsup@1", "knn.mmselfsup@1", ("geometry.crop=192",), "geometry.crop"),
        ("knn.mmselfsup@1", "knn.dino@1", (), "geometry.interpolation"),
        ("voc07_low_shot_svm.mmselfsup@1", "voc07_low_shot_svm.vissl@1", (), "geometry.resize"),
    ],
)
def test_every_field_can_be_switched_by_itself(a: str, b: str, changes: tuple[str, ...], field: str) -> None:
    first, last = find_protocol(a), with_settings(find_protocol(b), changes)
    found = between(first, last)
    alone = {name for p in (*found[1:-1], last) for name in differing(first, p) if len(differing(first, p)) == 1}
    assert field in alone
    assert len({protocol.content_sha256() for protocol in found}) == len(found)


TIED = [
    ("voc0712_det.moco@1", "voc0712_det.demo@1", [("iterations", "steps")]),
    ("coco_vitdet.base_100ep@1", "coco_vitdet.huge_75ep@1", [("iterations", "steps")]),
    ("ade20k_upernet.mae_base@1", "ade20k_upernet.demo@1",
     [("crop", "window_stride"), ("iterations", "warmup_iterations")]),
    ("linear_avgpool.moco@1", "linear_avgpool.demo@2", [("epochs", "drops"), ("heldout", "lrs")]),
    ("linear_avgpool.moco@1", "linear_avgpool.simsiam@2", [("epochs", "drops")]),
    ("finetune_imagenet.mocov1@1", "finetune_imagenet.mae_base@1", [("layer_decay", "mean_pool")]),
    ("finetune_imagenet.mocov1@1", "finetune_imagenet.mae_large@1", [("epochs", "drops", "warmup")]),
    ("attentive.ep@2", "attentive.capi@1", [("epochs", "iterations", "warmup")]),
    ("logistic.clip@1", "logistic.dinov2@1", [("costs", "search")]),
]  # fmt: skip


def corner_sides(a: Protocol, b: Protocol, found: Sequence[Protocol]) -> list[frozenset[str]]:
    """The fields that each protocol has of B; fails where one has a value of neither."""
    fields, sides = differing(a, b), []
    for protocol in found:
        own = differing(a, protocol)
        assert all(name in fields and theirs == fields[name][1] for name, (_, theirs) in own.items()), protocol.id
        sides.append(frozenset(own))
    return sides


def chain_corners(a: Protocol, b: Protocol, steps: Sequence[tuple[str, ...]]) -> list[frozenset[str]]:
    """The corners that `results explain` asks for: both orders of the steps as it reads them from two records."""
    first, last = (Protocol.model_validate_json(protocol.model_dump_json()) for protocol in (a, b))
    step_of = {name: step for step in steps for name in step}
    order = list(dict.fromkeys(step_of[name] for name in differing(first, last)))
    return [
        frozenset(name for step in way[:count] for name in step)
        for way in (order, order[::-1])
        for count in range(len(order) + 1)
    ]


@pytest.mark.parametrize(("a", "b", "tied"), TIED)
def test_fields_that_only_go_together_are_one_step(a: str, b: str, tied: list[tuple[str, ...]]) -> None:
    for first, last in permutations((find_protocol(a), find_protocol(b))):
        steps = switching_steps(first, last)
        assert {frozenset(step) for step in steps if len(step) > 1} >= set(map(frozenset, tied))
        sides = corner_sides(first, last, between(first, last))
        assert set(chain_corners(first, last, steps)) <= set(sides)
        for step in steps:
            assert all(len(side & set(step)) in (0, len(step)) for side in sides)
        sizes = {sum(step[0] in side for step in steps) for side in sides}
        assert sizes == set(range(len(steps) + 1))  # each step by itself, and one more each time


def test_a_length_takes_the_drops_of_its_rate_with_it() -> None:
    """Drops beyond the end of a training would be left out, and drops that only one of the two has are no values."""
    short, long = find_protocol("voc0712_det.demo@1"), find_protocol("voc0712_det.moco@1")
    for protocol in between(short, long):
        assert (protocol.params["iterations"] == 24_000) is (list(protocol.params["steps"]) == [18_000, 22_000])
    more = find_protocol("linear_avgpool.mmselfsup@1").changed(epochs=50)
    assert list(more.params["drops"]) == [30, 40]
    assert between(find_protocol("linear_avgpool.mmselfsup@1"), more)[1:] == [more]
    same = find_protocol("linear_avgpool.mmselfsup@1").changed(epochs=90, drops=(60, 80), batch_size=512)
    for protocol in between(find_protocol("linear_avgpool.mmselfsup@1"), same):
        assert list(protocol.params["drops"]) == [60, 80]  # both have these, so that they stay where epochs change


@pytest.mark.nightly
def test_every_two_protocols_of_a_benchmark_have_protocols_between() -> None:
    every: dict[tuple[str, str], list[Protocol]] = {}
    for task in tasks():
        for protocol in task.protocols:
            every.setdefault((protocol.benchmark, protocol.harness), []).append(protocol)
    count = 0
    for of_one in every.values():
        for a, b in permutations(of_one, 2):
            if not set(a.columns) & set(b.columns) or not differing(a, b):
                continue
            steps, found = switching_steps(a, b), between(a, b)
            sides = corner_sides(a, b, found)
            assert set(chain_corners(a, b, steps)) <= set(sides)
            corners = 2 ** len(steps) if len(steps) <= ALL_SETS_UP_TO else 2 * len(steps)
            assert len(set(sides)) == len(sides) == corners
            count += 1
    assert count > 400


def test_the_printed_command_explains_fields_that_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As measured, but for the trainings: the score is a plain sum over the settings."""

    def measured(_: object, protocols: Sequence[Protocol], *__: object) -> list[Record]:
        found = []
        for protocol in protocols:
            value = 40 + 10 * (protocol.params["iterations"] == 800) + 3 * (protocol.params["batch_size"] == 16)
            scores = {"AP50": Score(value=float(value), selection="last")}
            found.append(record(card("net"), protocol, scores=scores))
            write_record(tmp_path, found[-1])
        return found

    monkeypatch.setattr(explain, "measure_protocols", measured)
    monkeypatch.setattr(sys.modules["benchmarks.evaluate"], "load", lambda *_: None)
    ends = ["--a", "voc0712_det.demo@1", "--b", "voc0712_det.demo@1", "--encoder", "net"]
    more = ["--set-b", "iterations=800", "steps=500,700", "batch_size=16", "--data", str(tmp_path)]
    assert main(["explain", *ends, *more, "--out", str(tmp_path)]) == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed[:4] == ["python", "-m", "results", "explain"]
    assert printed[-2:] == ["--together", "iterations,steps"]
    assert results_main(printed[3:]) == 0
    page = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in page.splitlines() if line.startswith("|")]
    assert ["iterations and steps", "400 and 300, 360", "800 and 500, 700", "+10.00"] in rows
    assert ["batch size (batch_size)", "8", "16", "+3.00"] in rows
    assert results_main(printed[3:-2]) == 2  # as if each went by itself
    assert "run the command that it prints" in capsys.readouterr().err


def test_a_setting_that_is_left_out_at_its_default_is_switched_both_ways() -> None:
    plain = find_protocol("voc07_svm.mmselfsup@1")
    other = with_settings(plain, ("ap_rule=11point", "ignore_in_train=drop"))
    forth, back = between(plain, other), between(other, plain)
    assert [set(p.overrides) for p in forth[1:-1]] == [{"ignore_in_train=drop"}, {"ap_rule=11point"}]
    assert [p.params.get("ap_rule") for p in back] == ["11point", "11point", None, None]
    assert [p.metric for p in back[1:3]] == ["mAP (11-point)", "mAP (precision envelope)"]


def test_a_geometry_that_cannot_be_is_named() -> None:
    with pytest.raises(InputError, match=r"knn\.demo@1 has no setting 'geometry\.size'"):
        with_settings(find_protocol("knn.demo@1"), ("geometry.size=3",))
    with pytest.raises(
        InputError, match=r"knn\.demo@1 cannot have geometry\.crop='x': Input should be a valid integer"
    ):
        with_settings(find_protocol("knn.demo@1"), ("geometry.crop=x",))
    with pytest.raises(InputError, match=r"knn\.demo@1 cannot have geometry\.crop='0': Input should be greater"):
        with_settings(find_protocol("knn.demo@1"), ("geometry.crop=0",))
    assert with_settings(find_protocol("knn.demo@1"), ("geometry.crop=48",)) == find_protocol("knn.demo@1")  # as it was


def test_what_cannot_be_compared() -> None:
    knn, svm = find_protocol("knn.mmselfsup@1"), find_protocol("voc07_svm.mmselfsup@1")
    with pytest.raises(InputError, match="belong to different benchmarks"):
        between(knn, svm)
    with pytest.raises(InputError, match="do not differ in anything"):
        between(knn, knn)
    other = knn.changed(k=(3,))
    with pytest.raises(InputError, match="no column in common"):
        between(knn, other)


@pytest.mark.slow
def test_measured_and_explained(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records"
    flags = ["explain", "--a", "knn.demo@1", "--b", "knn.demo@1", "--set-b", "temperature=0.5", "normalise=false",
             "--encoder", "random:resnet18-w8-k3-nopool:0", "--data", str(small_data), "--out", str(out),
             "--features", str(tmp_path / "features"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main([*flags, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would run") == 4
    assert main(flags) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    target = "knn.demo@1+normalise=False+temperature=0.5"
    assert last == f"python -m results explain knn.demo@1 {target} --records {out}"
    (one,) = explanations(read_records(out)[0], "knn.demo@1", target)
    assert {switch.field for switch in one.switches} == {"temperature", "normalise"}
    assert sum(switch.share for switch in one.switches) == pytest.approx(one.score_b - one.score_a)
    assert all(switch.low is not None for switch in one.switches)
    assert results_main(["explain", "knn.demo@1", target, "--records", str(out)]) == 0
    assert main([*flags[:4], "no.such@1", *flags[5:]]) == 2
