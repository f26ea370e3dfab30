"""`why`: the published figure that is meant, the effects that add up, and the sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from results.errors import InputError
from results.explain import Gap, advice, sentence
from results.published import published_figure

MODEL = "MoCo v2/resnet50_8xb32-coslr-200e"
FIGURE = published_figure(MODEL, "knn", column="k=20")
GAP = Gap(FIGURE, 55.7, 54.9, 51.4, "k=20", "k=20", (("temperature 0.07 → 0.5", -3.5),), 0.0, 0.2, True, "imagenet")


def test_the_published_figure() -> None:
    assert (FIGURE.text, FIGURE.place and FIGURE.place.protocol) == ("55.7", "knn.mmselfsup@1")
    assert published_figure(MODEL, "knn.mmselfsup@1", column="k=200").text == "52.5"
    with pytest.raises(
        InputError, match=r"no figure of .* matches these flags; its figures are\n(.*\n)*.* k=20 of MoCo v2"
    ):
        published_figure(MODEL, "knn", column="k=21")
    for given, said in (
        (("MoCo v2/resnet50_8xb32-coslr-200",), "did you mean"),
        ((MODEL,), "choose one with --protocol"),
        ((MODEL, "voc12aug_fcn_of_nobody"), "no figure of"),
        ((MODEL, "knn", "*", "k=7"), "no figure of"),
    ):
        with pytest.raises(InputError, match=said):
            published_figure(*given)


def test_the_sentence_says_what_explains_how_much_and_what_is_left() -> None:
    said = sentence(GAP, 1)
    assert said == (
        "Your 51.4 is 4.3 below the published 55.7: your settings explain -3.5 (temperature 0.07 → 0.5: -3.5), and "
        "-0.8 is left, more than the noise of the test sample."
    )
    assert "encoder-bench audit" in advice(GAP)[0]
    quiet = replace(GAP, standard_error=0.5)
    assert "which the noise of the test sample alone could give" in sentence(quiet)
    assert advice(quiet) == ()
    assert "how much of that is noise is not known" in sentence(replace(GAP, standard_error=None))
    other = replace(GAP, mine=52.0, mine_column="k=10", selection=0.6)
    assert "reporting k=10 instead of k=20: +0.60" in sentence(other)
    many = replace(GAP, settings=tuple((f"s{i}", -0.5) for i in range(7)))
    assert "; 3 others: -1.50)" in sentence(many)
    same = replace(GAP, mine=54.9, settings=())
    assert "no setting differs, and -0.80 is left" in sentence(same)
    small = sentence(replace(GAP, comparable=False, dataset="drawings"))
    assert small.startswith(
        "The published 55.7 cannot be compared with a score on drawings; there, your settings explain"
    )


@pytest.mark.slow
def test_a_measured_gap_is_taken_apart(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FIGURE.place is not None
    small = replace(FIGURE, place=replace(FIGURE.place, protocol="knn.demo@1", column="k=10"))
    monkeypatch.setattr("results.published.published_figure", lambda *_: small)
    where = ["--data", str(small_data), "--out", str(tmp_path / "r"), "--features", str(tmp_path / "f")]
    mine = ["--set", "temperature=0.5", "normalise=false", "--mine-column", "k=20"]
    asked = ["why", "pixels", "--published", MODEL, *mine, *where]
    assert main([*asked, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would run") == 4
    assert not (tmp_path / "r").exists()
    assert main([*asked, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "| temperature " in said
    assert "| normalised features (normalise) " in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("The published 55.7 cannot be compared with a score on drawings")
    assert "reporting k=20 instead of k=10" in last
    parts = [float(part.split(":")[1]) for part in last.partition("(")[2].partition(")")[0].split(";")]
    explained = float(last.partition("explain ")[2].split()[0])
    assert sum(parts) == pytest.approx(explained, abs=0.02)


def test_refusals(small_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["why", "pixels", "--published", MODEL, "--protocol", "knn", "--column", "k=10", "--data", str(small_data)]
    assert main([*asked, "--mine", "voc07_svm.vissl@1"]) == 2
    assert "is a different benchmark" in capsys.readouterr().err
    assert main([*asked, "--mine-column", "k=7"]) == 2
    assert "has no column k=7" in capsys.readouterr().err
