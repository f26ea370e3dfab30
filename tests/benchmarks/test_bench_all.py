"""`python -m benchmarks all`: what runs, what is skipped and why, and that nothing stops the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main, suite, summary_text
from benchmarks.evaluate import Attempt, distinct_names
from benchmarks.task import InputError
from results.schema import Architecture, EncoderCard
from results.store import read_records

ENCODER = "random:resnet18-w8-k3-nopool:0"


def run(data: Path, out: Path, *flags: str, encoder: tuple[str, ...] = (ENCODER,)) -> int:
    return main(["all", "--encoder", *encoder, "--data", str(data), "--out", str(out / "records"),
                 "--features", str(out / "features"), "--device", "cpu", "--workers", "0", *flags])  # fmt: skip


def test_the_suite_is_the_published_variant_of_every_benchmark_and_the_small_one_on_embedded_data(
    data: Path, tmp_path: Path
) -> None:
    published = {q.protocol.id for q in suite(tmp_path)}
    assert {"knn.mmselfsup@1", "voc07_svm.mmselfsup@1", "linear_avgpool.moco@1", "linear_avgpool_places205.moco@1",
            "linear_multihead.mmselfsup@1", "voc07_low_shot_svm.mmselfsup@1"} <= published  # fmt: skip
    assert not any(".demo@" in p for p in published)
    assert all(q.protocol.variant == "demo" for q in suite(data))


def test_patterns_choose_and_one_that_names_nothing_is_refused(tmp_path: Path) -> None:
    assert [q.protocol.id for q in suite(tmp_path, ["knn.d*"])] == ["knn.dino@1", "knn.demo@1"]
    assert [q.protocol.id for q in suite(tmp_path, ["knn.dino"])] == ["knn.dino@1"]
    with pytest.raises(InputError, match=r"no protocol matches 'knm\.\*'"):
        suite(tmp_path, ["knm.*"])


@pytest.mark.slow
def test_it_runs_skips_retries_and_sums_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--only", "knn.demo", "linear_stored.demo", "linear_avgpool_cifar10.moco")

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the optimiser exploded")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.logistic.StoredLogistic.run", broken)
        assert run(data, tmp_path, *only, encoder=(ENCODER, "no_such_file.pth")) == 1
    told = capsys.readouterr().out
    assert "done: 1" in told
    assert "skipped: 1" in told  # CIFAR-10 is not there
    assert "cifar10" in told
    assert "failed: 2" in told
    assert "the optimiser exploded" in told
    assert "no_such_file.pth" in told

    assert run(data, tmp_path, *only) == 0
    told = capsys.readouterr().out
    assert "cached: 1" in told
    assert "done: 1" in told
    records, bad = read_records(tmp_path / "records")
    assert not bad
    assert {(r.record.protocol.id, r.record.status) for r in records} == {
        ("knn.demo@1", "ok"), ("linear_stored.demo@1", "ok"),
    }  # fmt: skip


def test_what_is_skipped_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = [Attempt("net", f"p{i}@1", "skipped", f"data set d{i} not found") for i in range(3)]
    attempts.append(Attempt("net", "q@1", "done", "k=20 67.5"))
    (tmp_path / "imagenet").mkdir()
    monkeypatch.setattr("benchmarks.__main__.bench", lambda _: iter(attempts))
    with caplog.at_level("INFO"):
        assert run(tmp_path, tmp_path) == 0
    shown = caplog.text + capsys.readouterr().out
    assert [shown.count(f"data set d{i} not found") for i in range(3)] == [1, 1, 1]
    assert [shown.count(f"p{i}@1") for i in range(3)] == [1, 1, 1]
    assert "done  net  q@1  k=20 67.5" in caplog.text


def test_the_summary_names_a_reason_once_and_the_data_that_is_not_there_by_data_set(tmp_path: Path) -> None:
    attempts = [
        Attempt(net, f"{data}_{i}@1", "skipped", f"data set {data} not found: …", missing=data)
        for net in ("a", "b")
        for data, count in (("imagenet", 3), ("coco", 1))
        for i in range(count)
    ]
    attempts += [Attempt("a", f"det{i}@1", "skipped", f"a has none of feature5, which det{i}@1 reads") for i in (1, 2)]
    assert summary_text(attempts, tmp_path).splitlines() == [
        "skipped: 10",
        "  a has none of feature5: det1@1, det2@1",
        f"  no data in {tmp_path} for 4 protocols: imagenet (3), coco (1); "
        f"`encoder-bench check-data --data {tmp_path}` says where to get it",
    ]


def test_the_summary_names_a_file_that_cannot_be_loaded_once(tmp_path: Path) -> None:
    failed = Attempt("a.pth", "", "failed", "a.pth is cut short; copy it again", user_error=True)
    assert summary_text([failed], tmp_path) == "failed: 1\n  a.pth is cut short; copy it again\n"


@pytest.mark.parametrize("command", ["all", "robustness"])
def test_a_root_without_any_data_set_is_refused_before_the_encoder_is_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pth").touch()
    assert main([command, str(tmp_path / "broken.pth"), str(tmp_path)]) == 2
    assert "has none of the data sets of these benchmarks" in capsys.readouterr().err


def test_a_dry_run_names_what_would_run_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, "--dry-run", "--only", "knn.demo", "linear_avgpool_cifar10.moco") == 0
    told = capsys.readouterr().out
    assert "would run" in told
    assert f"missing    no data in {data} for 1 protocol: cifar10 (1); `encoder-bench check-data" in told
    assert not (tmp_path / "records").exists()


def test_nothing_to_run_is_exit_code_2(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, "--only", "linear_avgpool_cifar10.moco") == 2


def test_checkpoints_of_one_run_are_told_apart_by_epoch_and_repetitions_are_not() -> None:
    def card(name: str, epochs: float | None) -> EncoderCard:
        return EncoderCard(name=name, source="test", architecture=Architecture(name="resnet18"), epochs=epochs)

    cards = {"a": card("moco", 100), "b": card("moco", 200), "c": card("swav", 400), "d": card("swav", 400)}
    expected = [("a", "moco, epoch 100"), ("b", "moco, epoch 200"), ("c", None), ("d", None)]
    assert list(distinct_names(cards)) == expected
