"""Runs that are killed, go on, and end as if they had not been; and what is kept of them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pretrain.loader import Batch
from pretrain.recipe import load_recipe
from pretrain.train import PretrainRun, load_resume, save_resume
from pretrain.trainer import Trainer
from pretrain.weight_files import read_backbone, write_backbone
from results.errors import INTERRUPTED
from results.schema import Architecture, EncoderCard
from tests.pretrain.tiny_runs import CPU, FLAGS, assert_same_end, run
from tests.processes import Program

# The command, with something that kills the process where the test wants it.
KILLED = """
import os, signal, sys, torch
from pretrain import train
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
    train.Trainer.update = killing(train.Trainer.update, False)
main(sys.argv[3:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tensor", "pil"])
def test_a_run_killed_again_and_again_ends_bit_identical(images: Path, tmp_path: Path, engine: str) -> None:
    """SIGKILL in a step, while a checkpoint is written, before its rename and after it; then to the end.

    The second engine differs in what a step restores, so that kills in and after one are enough for it.
    """
    kills = [("half a file", 1), ("in a step", 2), ("before the rename", 3), ("after the save", 2), ("half a file", 2)]
    if engine == "pil":
        kills = [("in a step", 2), ("after the save", 2)]
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None"] if engine == "pil" else []
    assert run(images, tmp_path / "whole", "--epochs", "4", *flags) == 0
    arguments = ["--data", str(images), "--out", str(tmp_path / "cut"), *FLAGS, "--epochs", "4", *flags]
    for where, number in kills:
        killed = Program(KILLED, where, str(number), *arguments)
        assert killed.wait() == -signal.SIGKILL, killed.said
    assert run(images, tmp_path / "cut", "--epochs", "4", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*"))  # what the killed processes left half written is gone


@pytest.mark.slow
def test_a_run_that_stops_inside_an_epoch_goes_on_there(images: Path, tmp_path: Path) -> None:
    """The first part of an epoch is not repeated: order, views and the epoch's row are those of an undisturbed run."""
    recipe = load_recipe("mocov2_resnet18w32_demo").changed(
        batch_size=8, queue_size=32, split_bn=2, epochs=2, precision="fp32"
    )
    PretrainRun(recipe, images, tmp_path / "a", device=CPU, workers=0).run()
    first = PretrainRun(recipe, images, tmp_path / "b", device=CPU, workers=0)
    first.trainer.prepare()
    for _, batch in zip(range(6), first.trainer.batches(), strict=False):  # two steps into the second epoch
        if first.trainer.step == 4:
            first.rows.append(first._row(1) | {"images_per_second": 1.0, "data_share": 0.0})
            first.trainer.sums.zero_()
        first.trainer.update(batch)
    first._save()
    PretrainRun(recipe, images, tmp_path / "b", device=CPU, workers=0).run()
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_signal_saves_the_state_and_ends_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("mocov2_resnet18w32_demo").changed(
        batch_size=8, queue_size=32, split_bn=2, epochs=2, precision="fp32"
    )
    PretrainRun(recipe, images, tmp_path / "a", device=CPU, workers=0).run()
    update = Trainer.update

    def signalled(self: Trainer, batch: Batch) -> None:
        update(self, batch)
        if self.step == 6:  # within the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", signalled)
        interrupted = PretrainRun(recipe, images, tmp_path / "b", device=CPU, workers=0)
        with pytest.raises(SystemExit) as stopped:
            interrupted.run()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run = PretrainRun(recipe, images, tmp_path / "b", device=CPU, workers=0)
    assert run.trainer.step == 6
    run.run()
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
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
    recipe = load_recipe("mocov2_resnet18w32_demo").changed(batch_size=8, queue_size=32, split_bn=2)
    stopped = PretrainRun(recipe, images, tmp_path / "out", device=CPU, workers=0)
    stopped._save()
    stopped.trainer.sums[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the last finite state"):
        stopped._save()
    assert torch.equal(load_resume(tmp_path / "out" / "resume.pt")["trainer"]["sums"], torch.zeros(4))  # type: ignore[index]


@pytest.mark.slow
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
        patch.setattr(PretrainRun, "_save_epoch", _save_and_stop)
        assert run(images, tmp_path / "cut", "--epochs", "2", *flags) == INTERRUPTED
    assert run(images, tmp_path / "cut", "--epochs", "2", *flags) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def _save_and_stop(self: PretrainRun, epoch: int, stop: bool) -> None:
    self._save()
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_from_shards_goes_on_with_another_number_of_workers(
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
        patch.setattr(PretrainRun, "_tell", lambda self, bar, text: None if self.trainer.step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tars, tmp_path / "cut", *flags)
    path = tmp_path / "old" / "resume.pt"
    shutil.copytree(tmp_path / "cut", path.parent)
    state = load_resume(path)
    assert state is not None
    state["trainer"]["split"] = [1, 0]  # ranks and workers, as older versions wrote
    save_resume(path, state)
    assert run(tars, tmp_path / "old", *flags) == 2
    assert "in the order of an older version" in capsys.readouterr().err
    assert run(tars, tmp_path / "cut", *flags, "--workers", "2") == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 50_000, 400_100])  # at once, inside a tensor, in the archive's end
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, room: int) -> None:
    path = tmp_path / "resume.pt"
    save_resume(path, {"step": 1})
    with full_disk(room), pytest.raises(OSError, match=r"resume\.pt"):
        save_resume(path, {"step": 2, "weights": torch.zeros(100_000)})
    assert load_resume(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


def test_a_backbone_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    card = EncoderCard(name="x", source="test", architecture=Architecture(name="resnet18"))
    with full_disk(50_000), pytest.raises(OSError, match=r"serializing.*backbone\.safetensors"):
        write_backbone(tmp_path / "backbone.safetensors", {"w": torch.zeros(100_000)}, card)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_in_one_sentence(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(100_000):
        assert run(images, tmp_path / "out", "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert "resume.pt" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    written = (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert run(images, tmp_path / "out", "--epochs", "1", "--lr", "0.5") == 2
    assert "another recipe" in capsys.readouterr().err
