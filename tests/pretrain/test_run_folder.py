"""The folder of a run: one run at a time, on one set of images; damaged files; unreadable images; full disks."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain.train import load_resume, save_resume
from pretrain.weight_files import read_backbone
from results.errors import InputError
from results.files import locked_folder
from tests.pretrain.tiny_runs import FLAGS, assert_same_end, run
from tests.processes import PRETRAIN, Program

PIL = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None"]
HOLD = """
import os, sys, time
from pathlib import Path
from results.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    if os.fork() == 0:  # as a loader worker, which outlives its killed parent
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def one_line(error: str) -> str:
    """The refusal, which must be the one line on stderr."""
    lines = [line for line in error.splitlines() if line.startswith("pretrain: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def same(one: object, two: object) -> bool:
    """Equality of nested containers of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.fixture
def finished(images: Path, tmp_path: Path) -> Path:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    return tmp_path / "out"


@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_its_holder_is_killed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert run(images, out, "--epochs", "1") == 2
        assert one_line(capsys.readouterr().err) == (
            f"pretrain: {out} is in use by another run; wait for its end, or choose another --out"
        )
        assert [path.name for path in out.iterdir()] == ["run.lock"]
        holder.kill()
        holder.wait()
        with locked_folder(out):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_runs_with_different_seeds_into_one_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused while the first runs, and after its end; the first ends as if it had been alone."""
    out = tmp_path / "out"
    first = Program(PRETRAIN, "--data", str(images), "--out", str(out), *FLAGS, "--epochs", "3", "--seed", "0")
    while not (out / "resume.pt").is_file():
        assert first.running, first.said
        time.sleep(0.005)
    with first.stopped():  # in the middle, however slow the second one is
        assert not (out / "backbone.safetensors").exists()
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert run(images, out, "--epochs", "3", "--seed", "1") == 2
        assert one_line(capsys.readouterr().err) == (
            f"pretrain: {out} is in use by another run; wait for its end, or choose another --out"
        )
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert first.wait() == 0, first.said
    assert run(images, out, "--epochs", "3", "--seed", "1") == 2
    assert f"{out} holds a run of another recipe" in one_line(capsys.readouterr().err)
    assert run(images, tmp_path / "alone", "--epochs", "3", "--seed", "0") == 0
    assert_same_end(tmp_path / "alone", out)


@pytest.mark.slow
def test_other_images_in_the_same_folder_are_refused(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of the same names with other content, too; the same images elsewhere are the same."""
    images.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", finished, "--epochs", "1") == 0
    capsys.readouterr()
    for path in (tmp_path / "moved").rglob("*.png"):
        Image.open(path).convert("RGB").rotate(90).save(path)
    assert run(tmp_path / "moved", finished, "--epochs", "1") == 2
    assert "holds a run on other images" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_a_flipped_byte_anywhere_in_the_resume_file_is_refused_or_harmless(finished: Path) -> None:
    """At 40 random places, every second one inside a tensor: one sentence, or exactly the state that was saved."""
    path = finished / "resume.pt"
    content = path.read_bytes()
    saved = load_resume(path)
    assert saved is not None
    weights = saved["trainer"]["model"]["queue"].numpy().tobytes()
    start = content.index(weights)
    draws, refused = random.Random(0), 0
    for number in range(40):
        inside = number % 2
        place = start + draws.randrange(len(weights)) if inside else draws.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :])
        state, message = saved, ""
        try:
            state = load_resume(path) or {}
        except InputError as error:
            message = str(error)
            refused += 1
        if message or inside:
            assert "is damaged or not a resume file of this project" in message
            assert "remove it to start anew" in message
            assert len(message.splitlines()) == 1
        assert same(state, saved)
    assert refused >= 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda _: b"",
        lambda _: b"PK\x05\x06" + bytes(18),  # an archive without members
        lambda content: content[:100] + bytes(50) + content[150:],
    ],
    ids=["half", "empty", "no members", "zeros"],
)
def test_a_damaged_resume_file_is_one_sentence(
    images: Path, finished: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    path = finished / "resume.pt"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert run(images, finished, "--epochs", "1") == 2
    assert "remove it to start anew" in one_line(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["trainer", "seconds", "trainer/model", "trainer/optimizer", "trainer/views"])
def test_a_resume_file_without_a_part_is_one_sentence(
    images: Path, finished: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    state = load_resume(finished / "resume.pt") or {}
    *tables, last = missing.split("/")
    inner = state
    for table in tables:
        inner = inner[table]
    del inner[last]
    save_resume(finished / "resume.pt", state)
    assert run(images, finished, "--epochs", "1") == 2
    assert "is damaged or not a resume file" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_a_run_from_another_kind_of_device_goes_on(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU's random states have 16 bytes, a CPU's 5,056."""
    out = tmp_path / "out"
    assert run(images, out, "--epochs", "2") == 0
    (out / "epoch_0001.pt").replace(out / "resume.pt")
    state = load_resume(out / "resume.pt") or {}
    for name in ("shuffles", "views"):
        state["trainer"][name] = torch.zeros(16, dtype=torch.uint8)
    save_resume(out / "resume.pt", state)
    with caplog.at_level(logging.INFO):
        assert run(images, out, "--epochs", "2") == 0
    assert "comes from another kind of device" in caplog.text
    assert "resuming at step 2" in caplog.text
    assert (load_resume(out / "resume.pt") or {})["trainer"]["step"] == 4


@pytest.mark.slow
def test_a_first_epoch_that_diverges_names_no_file_that_is_not_there(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--epochs", "2", "--lr", "1e38", "--precision", "fp32", "--schedule", "step", "--warmup-epochs", "0"]
    assert run(images, tmp_path / "out", *flags) == 2
    message = one_line(capsys.readouterr().err)
    assert "no state had been saved yet" in message
    assert "resume.pt" not in message


@pytest.mark.slow
def test_a_warm_start_that_does_not_fit_is_one_sentence(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = ["--warm-start", str(finished / "backbone.safetensors"), "--epochs", "1"]
    assert run(images, tmp_path / "other", *warm, "--architecture.width", "16") == 2
    assert "another architecture or width than the recipe's resnet18 of width 16" in one_line(capsys.readouterr().err)
    assert run(images, tmp_path / "other", "--warm-start", str(tmp_path / "nowhere"), "--epochs", "1") == 2
    assert "file not found" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_checkpoints_of_a_run_are_encoders(images: Path, finished: Path) -> None:
    """The benchmarks load `resume.pt` and `epoch_*.pt` as they load the backbone file, and the key encoder too."""
    from benchmarks.encoders.load import load_encoder

    pictures = torch.rand(2, 3, 32, 32)
    exported = load_encoder(finished / "backbone.safetensors")
    expected = exported.outputs(pictures, ["embed"])["embed"]
    for name in ("resume.pt", "epoch_0001.pt"):
        loaded = load_encoder(finished / name)
        assert torch.equal(loaded.outputs(pictures, ["embed"])["embed"], expected)
        assert loaded.card.assumed == ()
        for field in ("architecture", "weights_sha256", "mean", "std", "epochs"):
            assert getattr(loaded.card, field) == getattr(exported.card, field), field
        other = load_encoder(finished / name, facts=["pick=encoder_k"])
        assert not torch.equal(other.outputs(pictures, ["embed"])["embed"], expected)


@pytest.mark.slow
def test_large_seeds_work_in_every_engine(images: Path, tmp_path: Path) -> None:
    for name, flags in (("tensor", []), ("pil", PIL)):
        assert run(images, tmp_path / name, "--epochs", "1", "--seed", str(2**32 - 1), *flags) == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["stored", "pil", "cv2", "shards"])
def test_unreadable_images_are_skipped_counted_and_listed(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    """Two of 33 are damaged: above the default share the run stops, below the share that is allowed it trains."""
    folder = images / "train" / "things"
    for name in ("05.png", "06.png"):
        (folder / name).write_bytes(b"damaged")
    data = images
    if engine == "shards":
        data = tmp_path / "tars"
        data.mkdir()
        with tarfile.open(data / "0.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)
    flags = ["--epochs", "2"] if engine == "stored" else ["--epochs", "2", *PIL]
    if engine == "cv2":
        pytest.importorskip("cv2")
        flags += ["--augmentation.engine", "cv2"]
    assert run(data, tmp_path / "out", *flags) == 2
    message = one_line(capsys.readouterr().err)
    assert "of 33 images cannot be read, more than --max-unreadable 0.01 allows" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert run(data, tmp_path / "out", *flags, "--max-unreadable", "0.1") == 0
    skipped = [record.getMessage() for record in caplog.records if "skipped an unreadable image" in record.getMessage()]
    assert len(skipped) == 2
    assert {"5", "6"} == {
        text.partition(")")[2].partition(".png" if engine != "shards" else " of ")[0][-1:] for text in skipped
    }
    tensors, _ = read_backbone(tmp_path / "out" / "backbone.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.slow
def test_a_run_with_unreadable_images_goes_on_as_if_it_had_not_stopped(images: Path, tmp_path: Path) -> None:
    (images / "train" / "things" / "05.png").write_bytes(b"damaged")
    flags = ["--epochs", "2", "--max-unreadable", "0.1", *PIL]
    assert run(images, tmp_path / "whole", *flags) == 0
    assert run(images, tmp_path / "cut", *flags) == 0
    (tmp_path / "cut" / "epoch_0001.pt").replace(tmp_path / "cut" / "resume.pt")
    assert run(images, tmp_path / "cut", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


FULL = """
import resource, sys
from pretrain.__main__ import main
room = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [10, 1_000, 20_000, 600_000])
def test_a_full_disk_at_any_file_is_one_sentence(images: Path, tmp_path: Path, room: int) -> None:
    """Files cannot grow beyond `room` bytes: the recipe, the events, the log, the checkpoint or the backbone fails."""
    flags = ["--data", str(images), "--out", str(tmp_path / "out"), *FLAGS, "--epochs", "2"]
    full = Program(FULL, str(room), *flags)
    assert full.wait() == 2, full.said
    assert "File too large" in one_line(full.said)


@pytest.mark.slow
def test_the_first_log_line_says_how_batch_norm_splits(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert run(images, tmp_path / "out", "--epochs", "1", "--precision", "fp32") == 0
    first = next(record.getMessage() for record in caplog.records if record.name.startswith("pretrain"))
    assert "on cpu, fp32, tensor augmentation, 33 images, 0 loader workers on each of 1 ranks" in first
    assert first.endswith("batch norm in 2 groups of 8 images (2 on each of 1 ranks)")
