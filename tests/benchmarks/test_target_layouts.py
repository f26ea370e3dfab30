"""Every target on a few images in exactly its data set's own layout, from the command to a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from results.schema import Record
from results.store import read_records
from tests.layouts.cifar10 import write_cifar10
from tests.layouts.imagenet import write_imagenet
from tests.layouts.inat18 import write_inat18
from tests.layouts.places205 import write_places205

HEADED = "tests.reference.headed:build"
POOLED = "random:resnet18-w16:0"  # a stem like ResNet-50's, whose maps fit the published pooling kernels


def records(root: Path, command: str, protocol: str, *changes: str, data: Path, encoder: str = POOLED) -> list[Record]:
    flags = ["--protocol", protocol, *(["--set", *changes] if changes else [])]
    code = main([command, "--encoder", encoder, "--data", str(data), "--out", str(root / "records"), "--features",
                 str(root / "features"), "--device", "cpu", "--workers", "0", *flags])  # fmt: skip
    assert code == 0
    stored, bad = read_records(root / "records")
    assert not bad
    assert all(one.intact for one in stored)
    return [one.record for one in stored if one.record.protocol.id.startswith(protocol)]


@pytest.mark.parametrize(
    ("write", "dataset"),
    [
        (write_places205, "places205"),
        (write_inat18, "inat18"),
        (write_imagenet, "imagenet"),
    ],
)
def test_multihead_and_avgpool_run_on_the_published_layout(
    write: Callable[[Path], Path], dataset: str, tmp_path: Path
) -> None:
    write(tmp_path)
    suffix = "" if dataset == "imagenet" else f"_{dataset}"
    for command, benchmark, variant, columns, drops in (
        ("multihead", f"linear_multihead{suffix}", "mmselfsup", {f"Feature{n}" for n in range(1, 6)}, "1,1,1"),
        ("linear", f"linear_avgpool{suffix}", "moco", {"AvgPool", "AvgPool last", "AvgPool best"}, "1,1"),
    ):
        protocol = f"{benchmark}.{variant}@1"
        (record,) = records(tmp_path / "out", command, protocol, "epochs=1", "batch_size=8", data=tmp_path)
        assert record.protocol.id == f"{protocol}+batch_size=8+drops={drops}+epochs=1+train_images=24"
        assert (record.dataset.train_items, record.dataset.test_items) == (24, 12)
        assert columns <= set(record.scores) <= set(record.protocol.resolved.columns)
        assert not record.dataset.embedded


def test_cifar10_runs_on_its_batches(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    small = "random:resnet18-w8-k3-nopool:0"
    for command, benchmark in (("multihead", "linear_multihead_cifar10"), ("linear", "linear_avgpool_cifar10")):
        variant = "mmselfsup" if command == "multihead" else "moco"
        (record,) = records(
            tmp_path / "out", command, f"{benchmark}.{variant}@1", "epochs=1", data=tmp_path, encoder=small
        )
        assert (record.dataset.train_items, record.dataset.test_items) == (20, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("percent", "labelled"), [(1, 3), (10, 6)])
def test_semi_supervised_runs_its_grid_on_the_published_lists(percent: int, labelled: int, tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    protocol = f"semi_supervised_{percent}pct.mmselfsup@1"
    # One image of a class cannot be held out and trained on, so the 1 % of so small a set leaves the choice on test.
    heldout = "heldout=0" if percent == 1 else "heldout=0.5"
    found = records(
        tmp_path / "out", f"semi-{percent}pct", protocol, "epochs=1", "lrs=0.01,0.1", "head_multipliers=1,10", heldout,
        data=tmp_path,
    )  # fmt: skip
    cells = [record for record in found if len(record.runs) == 1]
    (summary,) = (record for record in found if len(record.runs) == 4)
    assert len(cells) == 4
    assert {record.dataset.train_items for record in found} == {labelled}
    assert all("lrs=" in record.protocol.id for record in cells)
    best = max(record.scores["Top-1"].value or 0 for record in cells)
    assert summary.scores["Top-1 oracle"].value == best
    assert ("Top-1" in summary.scores) == (percent == 10)
    assert summary.outcomes_file is not None
    assert not list((tmp_path / "out" / "heads").rglob("*.pt"))  # what a killed run would have gone on from


@pytest.mark.parametrize(("write", "dataset"), [(write_imagenet, "imagenet"), (write_inat18, "inat18")])
def test_fine_tuning_end_to_end_runs(write: Callable[[Path], Path], dataset: str, tmp_path: Path) -> None:
    write(tmp_path)
    protocol = f"finetune_{dataset}.mocov1@1"
    (record,) = records(tmp_path / "out", "finetune", protocol, "epochs=1", "batch_size=8", data=tmp_path)
    assert set(record.scores) == {"Top-1", "Top-5", "Top-1 best"}
    assert record.scores["Top-1"].n == 12


@pytest.mark.parametrize(
    ("write", "protocol", "changes"),
    [
        (write_cifar10, "knn.cifar_notebook@1", ("k=12",)),
        (write_imagenet, "knn.lemniscate@1", ("k=12",)),
        (write_imagenet, "knn.vissl@1", ("k=12",)),
        (write_imagenet, "knn.mmselfsup@1", ("k=3,12",)),
        (write_imagenet, "knn.dino@1", ("k=3,12",)),
    ],
)
def test_every_knn_variant_runs(
    write: Callable[[Path], Path], protocol: str, changes: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path)
    (record,) = records(tmp_path / "out", "knn", protocol, *changes, data=tmp_path, encoder=HEADED)
    assert set(record.scores) == set(record.protocol.resolved.columns)
    assert "k=12" in record.scores


@pytest.mark.slow
def test_low_shot_runs_on_places205_in_its_own_layout(tmp_path: Path) -> None:
    write_places205(tmp_path)
    protocol = "places205_low_shot_svm.fssb@2"
    changes = ("k=1,2", "sets=2", "costs=1,0.01")
    (record,) = records(tmp_path / "out", "low-shot-svm", protocol, *changes, data=tmp_path)
    assert set(record.scores) == {f"k={k}{how}" for k in (1, 2) for how in ("", " fixed", " heldout")}
    assert all(score.std is not None and score.n == 12 for score in record.scores.values())
    assert len(record.per_class["k=2"]) == 3
