"""`--set name=value`: typed by the protocol's params, refused by name, shown in the id, with columns that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import InputError, RunOptions, evaluate
from benchmarks.__main__ import main
from benchmarks.registry import find_protocol, load_task, tasks, with_settings
from results.schema import Protocol
from results.store import read_records

ENCODER = "random:resnet18-w8-k3-nopool:0"


def changed(identifier: str, *texts: str) -> Protocol:
    return with_settings(find_protocol(identifier), texts)


def test_values_are_typed_and_the_id_says_what_differs() -> None:
    protocol = changed(
        "linear_avgpool.moco", "epochs=10", "batch_size=128", "lrs=0.1,1,10", "heldout=0.2", "nesterov=yes"
    )
    assert protocol.id == (
        "linear_avgpool.moco@1+batch_size=128+drops=6,8+epochs=10+heldout=0.2+lrs=0.1,1.0,10.0+nesterov=True"
    )
    assert protocol.params["lrs"] == (0.1, 1.0, 10.0)
    assert (protocol.params["epochs"], protocol.params["nesterov"]) == (10, True)
    assert changed("linear_avgpool.moco", "epochs=100").id == "linear_avgpool.moco@1"  # as it was
    assert changed("linear_multihead.fssb", "iterations=none").params["iterations"] is None
    assert changed("linear_avgpool.moco", "crop_area=[0.2,1]").params["crop_area"] == (0.2, 1.0)


def test_a_second_override_takes_the_place_of_the_first() -> None:
    first = changed("linear_avgpool.moco", "epochs=10", "momentum=0.5")
    assert first.changed(**{"epochs": 5}).id == "linear_avgpool.moco@1+drops=3,4+epochs=5+momentum=0.5"


def test_columns_follow() -> None:
    knn = changed("knn.demo", "k=5,1", "top=1")
    assert (knn.columns, knn.primary) == (("k=1", "k=5"), "k=1")
    assert changed("knn.demo", "k=20,40").primary == "k=20"
    assert "AvgPool oracle" in changed("linear_avgpool.moco", "lrs=1,30", "heldout=0.1").columns
    assert "AvgPool oracle" not in changed("linear_avgpool.demo", "lrs=1").columns
    assert changed("linear_multihead.demo", "outputs=feature4,feature5").columns == ("Feature4", "Feature5")
    assert changed("linear_avgpool.moco", "choose_epoch=last").selection == "last epoch"
    assert changed("linear_multihead.demo", "lrs=0.01").selection == "last epoch"
    assert changed("voc07_svm.mmselfsup", "folds=5").selection == "cost per class by 5-fold CV on trainval"
    assert changed("semi_supervised_1pct.mmselfsup", "lrs=0.1", "head_multipliers=1").selection == "last epoch"
    assert "on test (oracle)" in changed("semi_supervised_1pct.mmselfsup", "heldout=0").selection
    assert changed("knn.demo", "k=5").selection == "fixed k"
    for task in tasks():
        for protocol in task.protocols:
            assert protocol.changed() == protocol


@pytest.mark.parametrize(
    ("identifier", "text", "sentence"),
    [
        ("knn.demo", "epochs=10", "knn.demo@1 has no setting 'epochs'\nsettings: exclude_self, features, k, "),
        ("knn.demo", "k", "expected name=value"),
        ("knn.demo", "=3", "has no setting ''"),
        ("knn.demo", "k=ten", "'k=..ten'.*valid integer"),
        ("knn.demo", "temperature=0", "greater than 0"),
        ("linear_avgpool.moco", "epochs=1.5", "epochs='1.5': Input should be a valid integer"),
        ("linear_avgpool.moco", "schedule=linear", "schedule='linear': Input should be 'step' or 'cosine'"),
        ("linear_avgpool.moco", "lrs=1,30", "set heldout > 0"),
        ("linear_avgpool.moco", "crop_area=[0.2", "this is not JSON"),
    ],
)
def test_what_cannot_be_is_refused_by_name(identifier: str, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("'k=..ten'", r"k=\['ten'\]")) as caught:
        changed(identifier, text)
    assert len(str(caught.value).splitlines()) <= 2  # the fault, then the accepted forms


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(InputError, match="k is set twice"):
        changed("knn.demo", "k=5", "k=6")


def run(command: str, data: Path, out: Path, *flags: str) -> int:
    return main([command, "--encoder", ENCODER, "--data", str(data), "--out", str(out / "records"), "--features",
                 str(out / "features"), "--device", "cpu", "--workers", "0", *flags])  # fmt: skip


@pytest.mark.slow
def test_the_command_takes_them(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("knn", small_data, tmp_path, "--set", "k=3,7", "top=1") == 0
    ((stored,), bad) = read_records(tmp_path / "records")
    assert not bad
    assert stored.record.protocol.id == "knn.demo@1+k=3,7+top=1"
    assert set(stored.record.scores) == set(stored.record.protocol.resolved.columns) == {"k=3", "k=7"}
    capsys.readouterr()
    assert run("knn", small_data, tmp_path, "--set", "epochs=10") == 2
    error = capsys.readouterr().err
    assert error.startswith("encoder-bench: knn.demo@1 has no setting 'epochs'")
    assert len(error.splitlines()) == 2
    assert run("linear", small_data, tmp_path, "--set", "epochs=soon") == 2
    assert "epochs='soon'" in capsys.readouterr().err


@pytest.mark.slow
def test_python_takes_values_by_name(small_data: Path, tmp_path: Path) -> None:
    options = RunOptions(records=tmp_path / "records", features=tmp_path / "features", workers=0, progress=False)
    record = evaluate(ENCODER, "knn.demo", small_data, changes={"k": (4,)}, options=options)
    assert record.protocol.id == "knn.demo@1+k=4"


def test_a_data_set_with_a_protocol_of_its_own_gets_it() -> None:
    multihead, linear = load_task("multihead")(), load_task("linear")()
    assert (
        multihead.default_protocol(embedded=False, dataset="places205").id == "linear_multihead_places205.mmselfsup@1"
    )
    assert multihead.default_protocol(embedded=False, dataset="inat18").params["epochs"] == 84
    assert linear.default_protocol(embedded=False, dataset="cifar10").test_split == "test"
    assert linear.default_protocol(embedded=False, dataset="imagefolder").id == "linear_avgpool.imagefolder@1"
    assert load_task("knn")().default_protocol(embedded=True).id == "knn.demo@1"
