"""A disk without room for records or features: one sentence, exit code 2, and nothing half written."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.encoders.export import write_safetensors
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.networks import random_resnet
from results.store import read_records
from tests.benchmarks.detection import test_detection_task as detection
from tests.benchmarks.segmentation import test_segmentation_task as segmentation
from tests.layouts.pictures import plain, save
from tests.layouts.voc12aug import write_voc12aug
from tests.results.factory_records import write_demo

small_heads = detection.small_heads  # a fixture

pytestmark = pytest.mark.faults

ENCODER = "random:resnet18-w8-k3-nopool:0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # mmengine keeps its log open


def fill(disk: Path, room: int) -> Path:
    """Leave so many bytes."""
    free = shutil.disk_usage(disk).free
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, free - room)))
    return ballast


@pytest.mark.parametrize("room", [0, 16384, 65536])
@pytest.mark.parametrize("which", ["--out", "--features"])
@pytest.mark.parametrize("benchmark", ["knn", "seg-logistic"])
def test_a_full_disk_is_one_sentence(
    benchmark: str, which: str, room: int, data: Path, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With room for some of it or none. With more room it works, and what was written before is whole.

    One benchmark stores vectors, the other patches and writes a picture.
    """
    folders = {"--out": tmp_path / "records", "--features": tmp_path / "features"} | {which: disk / "below"}
    command = [benchmark, "--encoder", ENCODER, "--data", str(data), "--device", "cpu", "--workers", "0"]
    command += [text for flag, folder in folders.items() for text in (flag, str(folder))]
    ballast = fill(disk, room)
    code = main(command)
    printed = capfd.readouterr().err
    if code:
        assert code == 2
        assert "Traceback" not in printed
        last = printed.strip().splitlines()[-1]
        assert "No space left" in last or "free" in last or "disk" in last, printed
    stored, damaged = read_records(folders["--out"])
    assert not damaged
    assert all(each.record.intact for each in stored)
    ballast.unlink()
    assert main(command) == 0
    ((record,), damaged) = read_records(folders["--out"])
    assert not damaged
    assert record.record.status == "ok"
    assert record.record.intact


@pytest.mark.parametrize(
    "command",
    [
        ["linear", "--set", "epochs=2"],
        ["finetune", "--set", "epochs=2"],
        ["attentive", "--set", "epochs=2", "queries=2"],
        ["seg-linear", "--set", "iterations=8", "evaluate_every=4", "warmup=2", "batch_size=4", "crop=64",
         "short_side=64", "rates=1e-4,1e-3"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_disk_that_fills_during_a_training_is_one_sentence_and_its_state_stays_whole(
    command: list[str], data: Path, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Too little room for the state after an epoch; with more room, the same command ends well."""
    where = ["--data", str(data), "--out", str(disk / "records"), "--features", str(tmp_path / "features")]
    command = [*command, "--encoder", ENCODER, "--device", "cpu", "--workers", "0", *where]
    ballast = fill(disk, 40_000)
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "No space left on device" in printed.strip().splitlines()[-1], printed
    assert not list(disk.rglob(".*"))
    ballast.unlink()
    assert main(command) == 0
    stored, damaged = read_records(disk / "records")
    assert not damaged
    assert all(each.record.intact for each in stored)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_heads")
@pytest.mark.skipif(not find_spec("detectron2") or not find_spec("mmseg"), reason="make setup-transfer")
@pytest.mark.parametrize("benchmark", ["voc-det", "voc-seg"])
def test_a_disk_that_fills_under_a_checkpoint_is_one_sentence(
    benchmark: str, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The libraries write them; with more room, the same command ends well."""
    if benchmark == "voc-det":
        detection.voc(tmp_path / "data")
        identifier = "voc0712_det.moco@1"
        sets = detection.as_sets(detection.tiny(identifier, iterations=4, checkpoint_every=2), identifier)
    else:
        write_voc12aug(tmp_path / "data")
        identifier = "voc12aug_fcn.mmselfsup@1"
        values = {**segmentation.TINY, "iterations": 4}.items()
        sets = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in values]
    command = [
        benchmark, "--protocol", identifier, "--encoder", ENCODER, "--data", str(tmp_path / "data"),
        "--out", str(disk / "records"), "--device", "cpu", "--workers", "0", "--set", *sets,
    ]  # fmt: skip
    ballast = fill(disk, 1_500_000)
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "No space left on device" in printed.strip().splitlines()[-1], printed
    assert not list(disk.rglob("*.partial"))
    ballast.unlink()
    assert main(command) == 0
    ((stored,), damaged) = read_records(disk / "records")
    assert not damaged
    assert stored.record.status == "ok"


def one_shard(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(3):
            save(plain(0, number), folder / f"{number}.png")
            tar.add(folder / f"{number}.png", f"{number}.png")
            (folder / f"{number}.png").unlink()


MAKERS = {
    "demo-data": (lambda disk: None, lambda disk: ["demo-data", "--out", f"{disk}/data"]),
    "random-encoder": (
        lambda disk: save(plain(0, 1), disk / "images/train/a/a.png"),
        lambda disk: [
            "random-encoder",
            "--architecture",
            "resnet18-w8",
            "--images",
            f"{disk}/images",
            "--out",
            f"{disk}/out.safetensors",
        ],
    ),
    "index-shards": (one_shard, lambda disk: ["index-shards", str(disk)]),
    "prepare-voc12aug": (
        lambda disk: write_voc12aug(disk, layout="sbd"),
        lambda disk: ["prepare-voc12aug", "--data", str(disk), "--expected", "14"],
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_on_a_full_disk_is_one_sentence_and_nothing_half_made_stays(
    name: str, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare, command = MAKERS[name]
    prepare(disk)  # type: ignore[no-untyped-call]
    before = set(files_below(disk))
    ballast = fill(disk, 0)
    assert main(command(disk)) == 2  # type: ignore[no-untyped-call]
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "No space left on device" in printed.strip().splitlines()[-1], printed
    left = set(files_below(disk)) - before - {ballast}
    assert all(not path.stat().st_size or path.suffix == ".lock" for path in left), left
    if name != "demo-data":  # which is larger than this disk
        ballast.unlink()
        assert main(command(disk)) == 0  # type: ignore[no-untyped-call]


WRITERS = {
    "report": lambda records, out: [
        "report", "--records", records, "--pretrain", f"{records}/none", "--out", f"{out}/report.html",
    ],
    "board": lambda records, out: ["board", out, "--records", records],
    "model cards": lambda records, out: ["export", records, "--out", out],
    "every eval ever": lambda records, out: [
        "export", records, "--to", "every-eval-ever", "--source-name", "me", "--out", out,
    ],
    "tables": lambda records, out: ["tables", "--records", records, "--out", f"{out}/tables.md"],
    "pictures": lambda records, out: ["pictures", "--records", records, "--out", out],
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "records"
    write_demo(root)
    return root


@pytest.mark.parametrize("room", [0, 8192])
@pytest.mark.parametrize("name", WRITERS)
def test_pages_on_a_full_disk_are_one_sentence_and_old_ones_stay_whole(
    name: str, room: int, records: Path, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A page is there whole, as it was before, or not at all; with more room, the same command writes all of them."""
    assert main(WRITERS[name](str(records), str(tmp_path / "whole"))) == 0
    expected = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in files_below(tmp_path / "whole")}
    assert expected
    out = disk / "out"
    out.mkdir()
    first = next(iter(expected))
    (out / first).parent.mkdir(parents=True, exist_ok=True)
    (out / first).write_text("old")
    ballast = fill(disk, room)
    code = main(WRITERS[name](str(records), str(out)))
    printed = capfd.readouterr().err
    assert code == (2 if sum(map(len, expected.values())) > room + 4096 else code)
    if code:
        assert code == 2
        assert "Traceback" not in printed
        assert "No space left on device" in printed.strip().splitlines()[-1], printed
    for path in files_below(out):
        assert path.read_bytes() in (b"old", expected[path.relative_to(out)]), path
    ballast.unlink()
    assert main(WRITERS[name](str(records), str(out))) == 0
    assert {path.relative_to(out): path.read_bytes() for path in files_below(out)} == expected


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("to", "suffix"), [("detectron2", ".pkl"), ("openmmlab", ".pth"), ("safetensors", ".safetensors")]
)
def test_a_converted_checkpoint_on_a_full_disk_is_one_sentence(
    to: str, suffix: str, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_safetensors(random_resnet(parse_architecture("resnet18-w8"), 0), tmp_path / "source.safetensors")
    out = disk / f"out{suffix}"
    command = ["convert", str(tmp_path / "source.safetensors"), str(out), "--to", to, "--force"]
    out.write_text("old")
    ballast = fill(disk, 8192)
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "No space left on device" in printed.strip().splitlines()[-1], printed
    assert [path.name for path in disk.iterdir() if path != ballast] == [out.name]
    assert out.read_text() == "old"
    ballast.unlink()
    assert main(command) == 0
    assert load_encoder(out).card.weights_sha256 == load_encoder(tmp_path / "source.safetensors").card.weights_sha256
