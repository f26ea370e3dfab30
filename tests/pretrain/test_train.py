"""Whole runs on small folders: learning, killing, going on, and refusing."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pretrain.__main__ import main
from pretrain.backbone_file import read_backbone, weights_sha256
from pretrain.checkpoint import load_resume, save_resume
from pretrain.contrast import ProjectedEncoder
from pretrain.plan import _small_batch
from pretrain.recipe import Augmentation, Recipe, load_recipe
from pretrain.train import Run

CPU = torch.device("cpu")
FLAGS = [
    "--recipe", "mocov2_resnet18w32_demo", "--architecture.width", "8", "--batch-size", "16", "--queue-size", "32",
    "--split-bn", "2", "--workers", "0", "--device", "cpu", "--threads", "1", "--save-every-epochs", "1",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "train" / "things"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(33):  # one more than two batches: the incomplete last one is dropped
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((40, 40)).save(folder / f"{number:02d}.png")
    return tmp_path / "images"


def run(images: Path, out: Path, *flags: str) -> int:
    return main(["--data", str(images), "--out", str(out), *FLAGS, *flags])


@pytest.mark.parametrize("engine", ["tensor", "pil"])
def test_run_writes_log_resume_file_and_a_backbone_with_its_card(images: Path, tmp_path: Path, engine: str) -> None:
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None"] if engine == "pil" else []
    assert run(images, tmp_path / "out", "--epochs", "2", *flags) == 0
    tensors, card = read_backbone(tmp_path / "out" / "backbone.safetensors")
    assert card is not None
    assert card.weights_sha256 == weights_sha256(tensors)
    assert (card.epochs, card.architecture.width, card.method) == (2, 8, "MoCo v2")
    log = (tmp_path / "out" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(log) == 3
    assert log[0] == "epoch,loss,chance_loss,accuracy,lr,spread,queue_fill,images_per_second,data_share"
    assert list((tmp_path / "out" / "tensorboard").rglob("events.*"))
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "out").glob(".*"))


def assert_same_end(one: Path, two: Path) -> None:
    """Weights, optimiser, queue, generators, log and backbone of two runs are the same bit by bit."""
    first, second = load_resume(one / "resume.pt"), load_resume(two / "resume.pt")
    assert first is not None
    assert second is not None
    assert [r["loss"] for r in first["rows"]] == [r["loss"] for r in second["rows"]]
    first, second = first["trainer"], second["trainer"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    states = (state["optimizer"]["state"].values() for state in (first, second))
    for a, b in zip(*states, strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert torch.equal(first["views"], second["views"])
    assert torch.equal(first["shuffles"], second["shuffles"])
    assert first["step"] == second["step"]
    backbones = [read_backbone(run_ / "backbone.safetensors")[0] for run_ in (one, two)]
    assert weights_sha256(backbones[0]) == weights_sha256(backbones[1])


# The command, with something that kills the process where the test wants it.
KILLED = """
import os, signal, sys, torch
from pretrain import checkpoint, train, trainer
from pretrain.__main__ import main
where, number = sys.argv[1], int(sys.argv[2])
train.SAVE_SECONDS, train.SAVE_SHARE = 0.0, 1e9  # a save after every step
seen = 0
def killing(function, after):
    def killed(*arguments, **named):
        global seen
        seen += 1
        if not after and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*arguments, **named)
        if after and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return killed
if where == "half a file":
    def save(state, file, save=torch.save):
        global seen
        seen += 1
        if seen == number:
            file.write(b"half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)
    torch.save = save
elif where == "before the rename":
    os.fsync = killing(os.fsync, True)
elif where == "after the save":
    train.save_resume = killing(train.save_resume, True)
elif where == "in a step":
    trainer.Trainer.update = killing(trainer.Trainer.update, False)
main(sys.argv[3:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tensor", "pil"])
def test_a_run_killed_again_and_again_ends_bit_identical(images: Path, tmp_path: Path, engine: str) -> None:
    """SIGKILL in a step, while a checkpoint is written, before its rename and after it; then to the end."""
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None"] if engine == "pil" else []
    assert run(images, tmp_path / "whole", "--epochs", "4", *flags) == 0
    arguments = ["--data", str(images), "--out", str(tmp_path / "cut"), *FLAGS, "--epochs", "4", *flags]
    for where, number in (
        ("half a file", 1), ("in a step", 2), ("before the rename", 2), ("after the save", 2), ("half a file", 2),
    ):  # fmt: skip
        command = [sys.executable, "-c", KILLED, where, str(number), *arguments]
        killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run(images, tmp_path / "cut", "--epochs", "4", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*"))  # what the killed processes left half written is gone


def test_a_run_that_stops_inside_an_epoch_goes_on_there(images: Path, tmp_path: Path) -> None:
    """The first part of an epoch is not repeated: order, views and the epoch's row are those of an undisturbed run."""
    recipe = load_recipe("mocov2_resnet18w32_demo").model_copy(
        update={"batch_size": 8, "queue_size": 32, "split_bn": 2, "epochs": 2, "precision": "fp32"}
    )
    Run(recipe, images, tmp_path / "a", device=CPU, workers=0).run()
    first = Run(recipe, images, tmp_path / "b", device=CPU, workers=0)
    first.trainer.prepare()
    for _, batch in zip(range(6), first.trainer.batches(), strict=False):  # two steps into the second epoch
        if first.trainer.step == 4:
            first.rows.append(first._row(1) | {"images_per_second": 1.0, "data_share": 0.0})
            first.trainer.sums.zero_()
        first.trainer.update(batch)
    first._save()
    Run(recipe, images, tmp_path / "b", device=CPU, workers=0).run()
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_the_last_checkpoints_and_the_marked_ones_are_kept(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(images, out, "--epochs", "6", "--keep-last", "2", "--marked-epochs", "1", "3") == 0
    names = sorted(p.name for p in out.glob("epoch_*"))
    assert names == [
        "epoch_0001.pt", "epoch_0001.safetensors", "epoch_0003.pt", "epoch_0003.safetensors", "epoch_0005.pt",
        "epoch_0006.pt",
    ]  # fmt: skip
    steps = [(load_resume(out / f"epoch_000{epoch}.pt") or {})["trainer"]["step"] for epoch in (1, 3, 5, 6)]
    assert steps == [2, 6, 10, 12]
    _, card = read_backbone(out / "epoch_0003.safetensors")
    assert card is not None
    assert card.epochs == 3


def test_a_diverged_state_does_not_replace_a_good_one(images: Path, tmp_path: Path) -> None:
    recipe = load_recipe("mocov2_resnet18w32_demo").model_copy(update={"batch_size": 8, "queue_size": 32})
    stopped = Run(recipe, images, tmp_path / "out", device=CPU, workers=0)
    stopped._save()
    stopped.trainer.sums[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the last finite state"):
        stopped._save()
    assert torch.equal(load_resume(tmp_path / "out" / "resume.pt")["trainer"]["sums"], torch.zeros(4))  # type: ignore[index]


@pytest.mark.parametrize(
    "flags",
    [
        ["--mechanism", "end-to-end"],
        ["--mechanism", "memory-bank"],
        ["--mechanism", "memory-bank", "--bank-loss", "nce", "--queue-size", "16"],
        ["--mechanism", "simclr", "--optimizer", "lars"],
        ["--symmetric"],
        ["--precision", "fp16"],
        ["--schedule", "exponential", "--warmup-epochs", "0", "--epoch-steps", "3"],
    ],
    ids=" ".join,
)
def test_every_mechanism_and_option_trains_and_goes_on(images: Path, tmp_path: Path, flags: list[str]) -> None:
    """One epoch and then a second equals both at once."""
    assert run(images, tmp_path / "whole", "--epochs", "2", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_save_epoch", _save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(images, tmp_path / "cut", "--epochs", "2", *flags)
    assert run(images, tmp_path / "cut", "--epochs", "2", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def _save_and_stop(self: Run, epoch: int) -> None:
    self._save()
    raise KeyboardInterrupt


def test_a_monitor_writes_its_column_and_changes_nothing_else(images: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    for split in ("train", "val"):
        for name, colour in (("dark", 20), ("light", 230)):
            (labelled / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 40), (colour + number,) * 3).save(labelled / split / name / f"{number}.png")
    watched = ["--monitor", str(labelled), "--monitor-every", "2"]
    assert run(images, tmp_path / "watched", "--epochs", "3", *watched) == 0
    assert run(images, tmp_path / "alone", "--epochs", "3") == 0
    assert_same_end(tmp_path / "watched", tmp_path / "alone")
    with (tmp_path / "watched" / "log.csv").open(encoding="utf-8", newline="") as file:
        knn = [row["knn"] for row in csv.DictReader(file)]
    assert knn[0] == ""
    assert all(0 <= float(value) <= 100 for value in knn[1:])


def test_a_monitor_without_labelled_images_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--monitor", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err


def test_cifar_10_is_read_from_its_owners_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrained on the training batches and watched on the test batch, in the layout of the owner's archive."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}))
    flags = ["--epochs", "1", "--augmentation.stored-size", "32", "--monitor", str(tmp_path / "cifar")]
    assert run(tmp_path / "cifar", tmp_path / "out", *flags) == 0
    with (tmp_path / "out" / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert 0 <= float(rows[0]["knn"]) <= 100
    _, card = read_backbone(tmp_path / "out" / "backbone.safetensors")
    assert card is not None
    assert card.pretrain_data == "cifar"
    (folder / "data_batch_3").unlink()
    assert run(tmp_path / "cifar", tmp_path / "other", *flags) == 2
    assert "data_batch_3 is missing" in capsys.readouterr().err


def test_a_run_from_shards_goes_on_only_with_as_many_workers(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    files = sorted(images.rglob("*.png"))
    for shard in range(3):
        with tarfile.open(tars / f"{shard}.tar", "w") as tar:
            for path in files[shard::3]:
                tar.add(path, path.name)
    flags = ["--augmentation.stored-size", "None", "--epochs", "1", "--batch-size", "8", "--queue-size", "32"]
    assert run(tars, tmp_path / "whole", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.train.SAVE_SECONDS", 0.0)
        patch.setattr("pretrain.train.SAVE_SHARE", 1e9)
        patch.setattr(Run, "_tell", lambda self, bar, text: None if self.trainer.step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tars, tmp_path / "cut", *flags)
    assert run(tars, tmp_path / "cut", *flags, "--workers", "2") == 2
    assert "--workers 0" in capsys.readouterr().err
    assert run(tars, tmp_path / "cut", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_bfloat16_follows_float32_within_two_percent(images: Path, tmp_path: Path) -> None:
    """The loss curve of mixed precision beside that of float32, epoch by epoch."""
    for precision in ("fp32", "bf16"):
        assert run(images, tmp_path / precision, "--epochs", "15", "--lr", "0.03", "--precision", precision) == 0
    curves = [
        [row["loss"] for row in (load_resume(tmp_path / p / "resume.pt") or {})["rows"]] for p in ("fp32", "bf16")
    ]
    assert max(abs(a - b) / a for a, b in zip(*curves, strict=True)) < 0.02


@pytest.mark.slow
def test_compiled_encoders_learn_the_same(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but run without a C++ compiler; the checkpoint's names are those of a plain run."""
    compiled: list[nn.Module] = []

    def traced(self: nn.Module) -> None:
        compiled.append(self)
        nn.Module.compile(self, backend="eager")

    monkeypatch.setattr(ProjectedEncoder, "compile", traced)
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        assert run(images, tmp_path / name, "--epochs", "1", "--precision", "fp32", "--split-bn", "1", *flags) == 0
    assert len(compiled) == 2  # query and key
    plain, other = (load_resume(tmp_path / name / "resume.pt") or {} for name in ("plain", "compiled"))
    assert plain["rows"][0]["loss"] == pytest.approx(other["rows"][0]["loss"], rel=1e-4)
    assert plain["trainer"]["model"].keys() == other["trainer"]["model"].keys()


def test_a_kill_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resume.pt"
    save_resume(path, {"step": 1})

    def full_disk(state: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_resume(path, {"step": 2})
    assert load_resume(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


def test_a_finished_run_is_not_repeated(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    written = (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns == written


def test_warm_start_takes_the_weights_only(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "first", "--epochs", "1") == 0
    backbone = tmp_path / "first" / "backbone.safetensors"
    assert run(images, tmp_path / "second", "--epochs", "1", "--lr", "0", "--weight-decay", "0",
               "--warm-start", str(backbone)) == 0  # fmt: skip
    before, after = read_backbone(backbone)[0], read_backbone(tmp_path / "second" / "backbone.safetensors")[0]
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--queue-size", "40"], "not a multiple of batch_size"),
        (["--queue-size", "8"], "lower batch_size or lengthen the queue"),
        (["--batch-size", "64", "--queue-size", "64"], "33 images do not fill one batch of 64"),
        (["--split-bn", "3"], "does not split into split_bn"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert run(images, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_recipe_in_the_same_folder_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert run(images, tmp_path / "out", "--epochs", "1", "--lr", "0.5") == 2
    assert "another recipe" in capsys.readouterr().err


def test_a_damaged_image_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = images / "train" / "things" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert run(images, tmp_path / "out", "--epochs", "1") == 2
    assert "00.png is not a readable image" in capsys.readouterr().err


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_state(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "8", "--lr", "1e12", "--precision", "fp32") == 2
    assert "lower lr" in capsys.readouterr().err


def test_dry_run_says_what_it_would_take_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "33 images" in plan
    assert "hours" in plan
    assert not (tmp_path / "out").exists()


def test_dry_run_measures_a_batch_that_the_queue_takes() -> None:
    """A part of the batch, so that a queue of whole batches and the parts of batch norms fit it."""
    for batch, parts, crop, measured in ((256, 1, 224, 8), (24, 1, 224, 8), (18, 1, 224, 6), (128, 8, 32, 128),
                                         (256, 8, 224, 16), (7, 1, 224, 7), (512, 8, 32, 256)):  # fmt: skip
        recipe = Recipe(batch_size=batch, queue_size=2 * batch, split_bn=parts, augmentation=Augmentation(crop=crop))
        assert _small_batch(recipe) == measured


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--augmentation.blur-q", "1"], "blur-q"),
        (["--epochs", "many"], "epochs"),
        (["--mechanism", "memory"], "mechanism"),
    ],
)
def test_unknown_flags_and_wrong_types_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(images, tmp_path / "out", *flags)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_a_damaged_image_is_named_from_a_loader_worker_too(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train" / "things" / "00.png").write_bytes(b"nonsense")
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None", "--workers", "1"]
    assert run(images, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert "00.png is not a readable image" in error
    assert "Traceback" not in error
