"""The protocols between two, and that `results explain` finds what `benchmarks explain` measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import InputError
from benchmarks.__main__ import main
from benchmarks.explain import between
from benchmarks.registry import find_protocol, with_settings
from results.__main__ import main as results_main
from results.compare.explain import differing, explanations
from results.store import read_records


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


def test_a_setting_that_is_left_out_at_its_default_is_switched_both_ways() -> None:
    plain = find_protocol("voc07_svm.mmselfsup@1")
    other = with_settings(plain, ("ap_rule=11point", "ignore_in_train=drop"))
    forth, back = between(plain, other), between(other, plain)
    assert [set(p.overrides) for p in forth[1:-1]] == [{"ap_rule=11point"}, {"ignore_in_train=drop"}]
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
