"""Linear segmentation and depth on a frozen encoder: views, schedules, losses, windows, resuming, and a small run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as TF

from benchmarks.datasets.registry import find_dataset
from benchmarks.dense.linear import DEPTH_DINOV3, DINOV2, DINOV3, HeadParams, LinearDepth, LinearSegmentation
from benchmarks.dense.masks import VOID, MaskFormat
from benchmarks.dense.problems import (
    HeadsModel,
    LinearDepthProblem,
    LinearSegmentationProblem,
    backward_pixels,
    depth_of,
    depth_view,
    distorted,
    dropped,
    grouped_loss,
    masked_loss,
    masked_view,
    on_maps,
    padded,
    scale_invariant_loss,
    short_side_size,
    windows,
)
from benchmarks.dense.training import HeadsState, TrainedHeads, choices, choose_map, head_bank
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.timm_models import even_blocks
from benchmarks.registry import find_protocol
from benchmarks.solvers.linear_heads import BankAdamW
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from results.schema import Protocol
from tests.builders import small_vit


def options(folder: Path) -> RunOptions:
    return RunOptions(device="cpu", workers=0, progress=False, records=folder / "records", features=folder / "features")


def test_heads_on_maps_are_torchs_layers_and_optimiser() -> None:
    """Batch norm, 1x1 convolution, bilinear cross-entropy, clipping and AdamW of each rate alone."""
    draws = torch.Generator().manual_seed(0)
    rates, clip = (1e-3, 1e-2), 0.05
    bank = head_bank(4, 3, 2, 0).train()
    optimiser = BankAdamW(bank, rates, [0.1, 0.1], betas=(0.9, 0.99), clip=clip, spare_norms=False)
    alone: list[tuple[torch.nn.Sequential, torch.optim.AdamW]] = []
    for head, rate in enumerate(rates):
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 3, 1))
        model[1].weight.data = bank.weight.data[head, :, :, None, None].clone()
        model[1].bias.data.zero_()
        alone.append((model, torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.1)))
    for step in range(4):
        maps = torch.randn(2, 4, 3, 3, generator=draws)
        targets = torch.randint(0, 3, (2, 9, 12), generator=draws)
        targets[0, :3] = VOID
        beta1, factor = (0.9, 0.85, 0.5, 0.9)[step], 1 / (1 + step)
        losses = backward_pixels(on_maps(bank, maps), targets)
        optimiser.step(factor, beta1)
        for head, (model, torchs) in enumerate(alone):
            upsampled = F.interpolate(model(maps), (9, 12), mode="bilinear", align_corners=False)
            loss = F.cross_entropy(upsampled, targets, ignore_index=VOID, reduction="none").mean()
            torchs.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            torchs.param_groups[0].update(lr=rates[head] * factor, betas=(beta1, 0.99))
            torchs.step()
            assert losses[head] == pytest.approx(float(loss.detach()), rel=1e-5)
    maps = torch.randn(1, 4, 3, 3, generator=draws)
    found = on_maps(bank.eval(), maps)
    for head, (model, _) in enumerate(alone):
        assert torch.allclose(found[head], model.eval()(maps), atol=1e-5)


def test_the_schedules() -> None:
    poly = [DINOV2.rate_factor(step) for step in (0, 750, 1500, 20_000, 39_999)]
    assert poly == pytest.approx(
        [1e-6, (1 - 0.5 * (1 - 1e-6)) * (1 - 750 / 40_000), 1 - 1500 / 40_000, 0.5, 1 / 40_000]
    )
    cosine = [DINOV3.rate_factor(step) for step in (0, 1, 20_001, 39_999)]
    half = (1 + math.cos(math.pi * 20_001 / 40_000)) / 2
    assert cosine == pytest.approx([1e-6, 1e-6, half, (1 + math.cos(math.pi * 39_999 / 40_000)) / 2], abs=1e-9)
    cycle = [DEPTH_DINOV3.rate_factor(step) for step in (0, 6400, 12_800, 38_399)]
    assert cycle[:2] == pytest.approx([1e-3, 1e-3 + (1 + math.cos(math.pi / 6)) / 4])
    assert 0.7 < cycle[2] < 0.8
    assert cycle[3] == pytest.approx(1 / 25_000)
    assert [DEPTH_DINOV3.first_moment(step) for step in (0, 12_800, 38_400)] == pytest.approx([0, 0.85, 0.95])
    assert DINOV3.first_moment(9) == 0.9


def test_dropout_zeroes_whole_channels_of_an_image() -> None:
    maps = dropped(torch.ones(50, 40, 2, 2), 0.1, torch.Generator().manual_seed(0))
    assert maps.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert torch.equal(maps.amin((2, 3)), maps.amax((2, 3)))
    assert 0.08 < float((maps == 0).float().mean()) < 0.12


def test_windows_cover_an_image_as_mmsegmentations_do() -> None:
    found = [(r.start, r.stop, c.start, c.stop) for r, c in windows(512, 683, 512, 341)]
    assert found == [(0, 512, 0, 512), (0, 512, 171, 683)]
    assert [(r.stop - r.start, c.stop - c.start) for r, c in windows(100, 90, 512, 341)] == [(100, 90)]
    count = np.zeros((700, 1200), int)
    for rows, columns in windows(700, 1200, 512, 341):
        assert (rows.stop - rows.start, columns.stop - columns.start) == (512, 512)
        count[rows, columns] += 1
    assert count.min() == 1


def test_padding_is_on_all_sides() -> None:
    x = torch.ones(1, 3, 512, 512)
    assert padded(x, 14).shape == (1, 3, 518, 518)
    assert padded(x, 14)[0, 0, :3].sum() == 0
    assert padded(torch.ones(1, 3, 13, 30), 14).shape[2:] == (14, 42)
    assert padded(torch.ones(1, 1, 13, 13), 14)[0, 0, :, -1].sum() == 0
    assert short_side_size((400, 300), 512) == (683, 512)
    assert short_side_size((300, 401), 512) == (512, 684)


def test_a_view_moves_image_and_mask_alike() -> None:
    """The image's red channel is its mask, so that a wrong join shows. Colours stay as they are."""
    params = DINOV3.changed(
        short_side=40, crop=32, ratio=(0.5, 2.0), brightness=0.0, hue=0.0, contrast=(1, 1), saturation=(1, 1)
    )
    mask = np.zeros((50, 60), np.uint8)
    mask[10:30, 20:50], mask[:5] = 1, 2
    image = Image.fromarray(np.stack([100 * mask, mask, mask], 2).astype(np.uint8))
    sizes = set()
    for seed in range(20):
        view = masked_view(image, mask, params, np.random.default_rng(seed))
        sizes.add((view.height, view.width))
        inside = view.target[: view.height, : view.width]
        red = view.image[0, : view.height, : view.width].float()
        agree = ((red / 100).round() == inside).float().mean()
        assert agree > 0.85  # resizing blurs edges
        assert (view.target[view.height :] == VOID).all()
        assert (view.image[:, :, view.width :] == 0).all()
        assert torch.equal(view.target, masked_view(image, mask, params, np.random.default_rng(seed)).target)
    assert len(sizes) > 2
    strong = masked_view(image, mask, DINOV3.changed(short_side=40, crop=32), np.random.default_rng(1))
    assert strong.image.dtype == torch.uint8


def test_a_crop_is_drawn_again_while_one_class_covers_three_quarters() -> None:
    mask = np.repeat([[0] * 32 + [1] * 32], 64, 0).astype(np.uint8)
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    params = DINOV3.changed(short_side=64, ratio=(1, 1), crop=32)

    def shares(mask: np.ndarray, **changes: Any) -> list[float]:
        views = (masked_view(image, mask, params.changed(**changes), np.random.default_rng(seed)) for seed in range(60))
        return [float((view.target[view.target != VOID] == 0).float().mean()) for view in views]

    assert sum(0.25 < share < 0.75 for share in shares(mask)) >= 59  # eleven draws fail once in 800 times
    assert sum(0.25 < share < 0.75 for share in shares(mask, most_of_one_class=1.0)) < 45
    assert all(share == 1.0 for share in shares(np.zeros_like(mask)))  # the last draw is taken as it is
    void = np.where(mask == 1, VOID, mask).astype(np.uint8)
    void[:, 28:32] = 1  # a tenth of all pixels, but half of the known ones of some crops
    assert sum(share < 0.75 for share in shares(void)) > sum(
        share < 0.75 for share in shares(void, most_of_one_class=1.0)
    )


class Script(np.random.Generator):
    """Random numbers that are given, in their order."""

    def __init__(self, coins: list[float], numbers: list[Any]) -> None:
        super().__init__(np.random.PCG64(0))
        self.coins, self.numbers = iter(coins), iter(numbers)

    def random(self, *_: Any, **__: Any) -> Any:
        return next(self.coins)

    def uniform(self, *_: Any, **__: Any) -> Any:
        return next(self.numbers)

    def integers(self, *_: Any, **__: Any) -> Any:
        return 0


@pytest.mark.parametrize("contrast_first", [True, False])
def test_distortion_is_mmsegmentations(contrast_first: bool) -> None:
    """Brightness, contrast, saturation, hue, each clipped and cut to 8 bits; contrast may come last."""
    image = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shift, contrast, saturation, hue = -20.5, 1.4, 0.6, 0.3
    own = [shift, contrast, saturation, hue] if contrast_first else [shift, saturation, hue, contrast]
    coins = [0.2, 0.4, 0.1, 0.3, 0.2] if contrast_first else [0.2, 0.6, 0.1, 0.3, 0.2]
    found = distorted(image, DINOV3, Script(coins, own))

    def scaled(pixels: np.ndarray) -> np.ndarray:
        return np.clip(pixels.astype(np.float32) * contrast, 0, 255).astype(np.uint8)

    expected = np.clip(image.numpy().astype(np.float32) + shift, 0, 255).astype(np.uint8)
    expected = scaled(expected) if contrast_first else expected
    picture = Image.fromarray(expected.transpose(1, 2, 0))
    tensor = TF.adjust_hue(TF.adjust_saturation(TF.pil_to_tensor(picture), saturation), hue)
    expected = tensor.numpy() if contrast_first else scaled(tensor.numpy())
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(distorted(image, DINOV3, Script([0.5, 0.5, 0.5, 0.5, 0.5], [])), image)


def test_the_published_column_is_the_best_evaluation_of_dinov3_and_the_last_of_dinov2() -> None:
    state = HeadsState("")
    state.evaluations = [{"iteration": 1, "test": [3.0, 9.0]}, {"iteration": 2, "test": [5.0, 6.0], "held": [1.0, 0.5]}]
    state.last, state.best = [torch.tensor([5.0]), torch.tensor([6.0])], [torch.tensor([5.5]), torch.tensor([9.0])]
    trained = TrainedHeads(None, state, "patches")  # type: ignore[arg-type]
    params = DINOV3.changed(rates=(1e-2, 1e-3))
    for best, published in ((True, 9.0), (False, 6.0)):
        found = choices(trained, params, best=best)
        assert {ending: (head, float(at[0])) for ending, (head, at) in found.items()} == {
            "": (0, 5.0), " oracle": (1, 9.0), " published": (1, published),
        }  # fmt: skip


def test_depth_of_bins_and_its_loss() -> None:
    logits = torch.randn(2, 256, 3, 4)
    bins = np.linspace(0.001, 10, 256)
    weights = logits.relu().double().numpy() + 0.1
    expected = (weights * bins[None, :, None, None]).sum(1) / weights.sum(1)
    assert depth_of(logits, DEPTH_DINOV3).numpy() == pytest.approx(expected, rel=1e-4)
    assert depth_of(logits, DEPTH_DINOV3.changed(upsample=4)).shape == (2, 12, 16)
    p, t = torch.rand(50) + 0.5, torch.rand(50) + 0.5
    g = np.log(p.numpy() + 1e-3) - np.log(t.numpy() + 1e-3)
    # With pixels that do not count, as both forms leave them out.
    p, t = torch.cat([p, torch.rand(9)]), torch.cat([t, torch.zeros(9)])
    for loss in (scale_invariant_loss, masked_loss):
        whole = loss(p, t, t > 0, warm=False)
        assert float(whole) == pytest.approx(np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2))
        assert float(loss(p, t, t > 0, warm=True)) == pytest.approx(np.sqrt(0.15) * abs(g.mean()), rel=1e-4)
    grown = [p.clone().requires_grad_() for _ in range(2)]
    for each, loss in zip(grown, (scale_invariant_loss, masked_loss), strict=True):
        loss(each, t, t > 0, warm=False).backward()
    torch.testing.assert_close(grown[1].grad, grown[0].grad)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_losses() -> None:
    """dinov3 has 8 GPUs with 2 images and a loss each; one loss of all 16 is another number."""
    draws = torch.Generator().manual_seed(4)
    spread = torch.rand(16, 1, 1, generator=draws)  # images differ more than their pixels
    p, t = spread + torch.rand(16, 3, 5, generator=draws), 0.5 + torch.rand(16, 3, 5, generator=draws)
    t[t < 0.7] = 0
    for warm in (False, True):
        expected = []
        for gpu in range(8):
            own_p, own_t = p[2 * gpu : 2 * gpu + 2].numpy(), t[2 * gpu : 2 * gpu + 2].numpy()
            g = np.log(own_p[own_t > 0] + 1e-3) - np.log(own_t[own_t > 0] + 1e-3)
            expected.append(np.sqrt(0.15 * g.mean() ** 2 + (0 if warm else g.var(ddof=1))))
        assert float(grouped_loss(p, t, 8, warm=warm)) == pytest.approx(np.mean(expected), rel=1e-4)
    assert abs(float(grouped_loss(p, t, 1, warm=False)) / float(grouped_loss(p, t, 8, warm=False)) - 1) > 0.02
    assert float(grouped_loss(p[:3], t[:3], 8, warm=False)) > 0  # a last, smaller batch has fewer parts
    groups = {v: find_protocol(f"nyu_depth_linear.{v}@2").params["loss_groups"] for v in ("dinov3", "dinov2_linear4")}
    assert set(groups.values()) == {8}
    assert "loss_groups" not in find_protocol("nyu_depth_linear.demo@1").params


def test_images_without_a_known_depth_neither_count_nor_break_a_loss() -> None:
    t = torch.zeros(2, 3, 4)
    t[0, 0, 0] = 1.5
    for loss in (scale_invariant_loss, masked_loss):
        p = torch.ones(2, 3, 4, requires_grad=True)
        found = loss(p, t, t > 0, warm=False)
        found.backward()
        assert float(found.detach()) == pytest.approx(1e-6)
        assert not p.grad.any()


def test_a_depth_view_cuts_the_border_and_pads_what_is_small() -> None:
    image = Image.fromarray(np.full((480, 640, 3), 200, np.uint8))
    depth = np.full((480, 640), 3.0, np.float32)
    params = DEPTH_DINOV3.changed(rotation=0.0, brightness=(1, 1), gamma=(1, 1), colour=(1, 1))
    view = depth_view(image, depth, params, np.random.default_rng(0))
    assert view.image.shape == (3, 416, 544)
    assert view.target.unique().tolist() == [3.0]
    assert view.image.unique().tolist() == [200]
    few = depth_view(image.resize((64, 48)), depth[::10, ::10], params, np.random.default_rng(0))
    assert (few.height, few.width) == (43, 56)
    assert few.target[43:].sum() == 0


def test_a_depth_view_rotates_mirrors_and_changes_colours() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    depth = rng.uniform(1, 9, (480, 640)).astype(np.float32)
    gamma, light, tint = 1.08, 0.8, np.array([0.95, 1.0, 1.1])
    params = DEPTH_DINOV3.changed(crop=(427, 565))
    found = depth_view(Image.fromarray(image), depth, params, Script([0.9, 0.2, 0.1], [gamma, light, tint]))
    cut = image[45:472, 43:608][:, ::-1].astype(np.float64)
    expected = np.clip(cut**gamma * light * tint, 0, 255)
    assert np.abs(found.image.numpy().transpose(1, 2, 0) - expected).max() < 0.51
    assert np.array_equal(found.target.numpy(), depth[45:472, 43:608][:, ::-1])
    turned = depth_view(Image.fromarray(image), depth, params, Script([0.1, 0.9, 0.9], [2.5]))
    pixels = torch.from_numpy(image[45:472, 43:608].transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(
        turned.image, (255 * TF.rotate(pixels, 2.5, TF.InterpolationMode.BILINEAR)).round().to(torch.uint8)
    )
    metres = torch.from_numpy(depth[45:472, 43:608].copy())[None]
    assert torch.equal(turned.target, TF.rotate(metres, 2.5, TF.InterpolationMode.NEAREST)[0])
    assert (turned.target == 0).any()  # what came in from outside


def test_depth_of_an_image_is_averaged_with_its_mirror_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    metres = rng.uniform(0.5, 14, (48, 64))
    Image.fromarray((1000 * metres).astype(np.uint16)).save(tmp_path / "depth.png")
    encoder = tall_vit(depth=4)
    blank = Labels((), (), (), np.zeros((0, 0), np.int8), (), ())
    problem = LinearDepthProblem(DEPTH_DINOV3, blank, blank, np.zeros(0, np.int64), options(tmp_path))
    bank = head_bank(24, 256, 1, 0).eval()
    with torch.no_grad():
        bank.weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
    model = HeadsModel(encoder, "patches", bank, problem)
    (found,) = problem.measure_image(model, tmp_path / "image.png", tmp_path / "depth.png")
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "image.png")).copy()).permute(2, 0, 1)[None]
    depths = []
    for shown in (pixels, pixels.flip(3)):
        maps = encoder.outputs(padded(encoder.normalise(shown), 14), {"patches"})["patches"]
        logits = torch.einsum("kc,nchw->nkhw", bank.weight[0], maps / (1 + 1e-5) ** 0.5).detach()
        depths.append(depth_of(logits, DEPTH_DINOV3))
    mean = (depths[0] + depths[1].flip(2)) / 2
    whole = F.interpolate(mean[:, None], (48, 64), mode="bilinear", align_corners=False)[0, 0].clamp(1e-3, 10).numpy()
    truth = np.floor(1000 * metres) / 1000
    rows = [(p, t) for p, t in zip(whole[4:47, 4:60].ravel(), truth[4:47, 4:60].ravel(), strict=True) if t < 10]
    p, t = np.array(rows, np.float64).T
    expected = [np.sqrt(((p - t) ** 2).mean()), (np.maximum(p / t, t / p) < 1.25).mean(), (np.abs(p - t) / t).mean()]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_map_is_the_deepest_that_is_fine_enough() -> None:
    encoder = load_encoder("random:resnet18-w8")
    assert choose_map(encoder, 96, 16, pad=False) == ("feature4", 32)
    assert choose_map(encoder, 96, 32, pad=False) == ("feature5", 64)
    with pytest.raises(InputError, match="has no feature map of stride 2"):
        choose_map(encoder, 96, 2, pad=False)
    assert choose_map(load_encoder("pixels"), 96, 16, pad=False) == ("patches", 768)


TWO_STEPS: dict[str, Any] = {"iterations": 2, "evaluate_every": 2, "warmup": 1, "batch_size": 2, "rates": (1e-3,)}


def splits(protocol: Protocol, data: Path) -> tuple[Labels, Labels]:
    read = find_dataset(protocol.dataset, data).read
    return read(protocol.train_split), read(protocol.test_split)


def run(task: Any, protocol: Protocol, data: Path, folder: Path, encoder: Encoder | None = None) -> Outcome:
    encoder = encoder or load_encoder("pixels")
    outcome: Outcome = task.run(protocol, encoder, *splits(protocol, data), folder / "work", options(folder))
    return outcome


@pytest.mark.slow
def test_a_small_segmentation_and_what_is_kept_of_a_killed_one(data: Path, tmp_path: Path) -> None:
    small = find_protocol("ade20k_seg_linear.demo@1").changed(
        iterations=8, evaluate_every=4, warmup=2, batch_size=4, crop=64, short_side=64, rates=(1e-4, 1e-3)
    )
    whole = run(LinearSegmentation(), small, data, tmp_path / "whole")
    assert set(whole.scores) == {"mIoU", "mIoU published", "mIoU oracle"}
    assert len(whole.runs) == 2
    assert {"mIoU@4", "mIoU@8", "heldout_mIoU"} <= set(whole.runs[0])
    assert whole.scores["mIoU oracle"].value == max(row[f"mIoU@{n}"] for row in whole.runs for n in (4, 8))
    chosen = next(row for row in whole.runs if row["chosen"])
    assert whole.scores["mIoU"].value == chosen["mIoU@8"]
    assert whole.pictures["masks"].startswith(b"\x89PNG")

    killed = tmp_path / "killed"
    calls = 0

    def interrupted(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadParams, "first_moment", lambda *a: interrupted() or 0.9)
        with pytest.raises(KeyboardInterrupt):
            run(LinearSegmentation(), small, data, killed)
    again = run(LinearSegmentation(), small, data, killed)
    assert again.runs == whole.runs
    assert torch.equal(again.tensors["weight"], whole.tensors["weight"])


def test_a_small_depth_run(data: Path, tmp_path: Path) -> None:
    small = find_protocol("nyu_depth_linear.demo@1").changed(
        iterations=8, evaluate_every=8, warmup=2, batch_size=4, crop=(64, 64), rates=(3e-4, 1e-2)
    )
    outcome = run(LinearDepth(), small, data, tmp_path)
    assert {"RMSE", "δ1", "AbsRel", "RMSE published", "RMSE oracle"} <= set(outcome.scores)
    assert outcome.scores["RMSE"].unit == "1"
    assert outcome.items["pseudo_value/RMSE"].mean() == pytest.approx(outcome.scores["RMSE"].value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="without torchrun"):
            run(LinearDepth(), small, data, tmp_path / "ranks")
    with pytest.raises(InputError, match="has no class token"):
        run(LinearDepth(), small.changed(class_token=True), data, tmp_path / "cls")
    scenes = splits(find_protocol("ade20k_seg_linear.demo@1"), data)
    with pytest.raises(InputError, match="needs a depth map for each image"):
        LinearDepth().check(small, *scenes)


def test_rates_without_the_published_one_have_no_column_for_it() -> None:
    protocol = find_protocol("ade20k_seg_linear.dinov3@1").changed(rates=(0.1,))
    assert protocol.columns == ("mIoU", "mIoU oracle")
    assert isinstance(DINOV2, HeadParams)


class TinyVit(torch.nn.Module):
    """Patches of 14 pixels and a class token, without any block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(3, 8, 14, 14)
        self.patch_embed.patch_size = (14, 14)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = self.patch_embed(images)
        return {"patches": patches, "cls": patches.mean((2, 3)), "embed": patches.mean((2, 3))}


def test_a_vit_with_patches_of_14_pixels_in_both_tasks(data: Path, tmp_path: Path) -> None:
    """Inputs are padded to whole patches, and DINOv2's depth head reads the class token beside each of them."""
    torch.manual_seed(0)
    encoder = load_encoder(TinyVit())
    assert {"patches", "cls"} <= encoder.names
    segmentation = find_protocol("ade20k_seg_linear.dinov2@1").changed(
        short_side=64, crop=64, window_stride=48, **TWO_STEPS
    )
    outcome = run(LinearSegmentation(), segmentation, data, tmp_path / "seg", encoder)
    assert outcome.tensors["weight"].shape == (13, 8)
    depth = find_protocol("nyu_depth_linear.dinov2_head@2").changed(crop=(64, 64), published=1e-3, **TWO_STEPS)
    outcome = run(LinearDepth(), depth, data, tmp_path / "depth", encoder)
    assert outcome.tensors["weight"].shape == (256, 16)
    assert "bn.weight" not in outcome.tensors
    with pytest.raises(InputError, match="set crop to a multiple of its patch size, or pad=true"):
        choose_map(_unpadded(encoder), 64, 16, pad=False)


def tall_vit(depth: int = 8) -> Encoder:
    return small_vit(depth=depth, patch_size=14, img_size=42, init_values=1.0, reg_tokens=2)


def blocks_seen(encoder: Encoder, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """The network of an encoder, and the tokens after each of its blocks."""
    module: Any = encoder.module
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *found: seen.append(found[2])) for block in module.blocks]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return module, seen


def test_tokens_of_four_even_blocks_have_no_norm() -> None:
    """As DINOv2's depth heads read them, against hooks on the blocks."""
    assert [even_blocks(depth) for depth in (12, 24, 40)] == [(2, 5, 8, 11), (4, 11, 17, 23), (9, 19, 29, 39)]
    encoder, x = tall_vit(), torch.randn(2, 3, 28, 56)
    module, seen = blocks_seen(encoder, x)
    found = encoder.outputs(x, {"patches_raw", "patches_even4", "cls_raw", "cls_even4"})
    four = [seen[block] for block in (1, 3, 5, 7)]
    maps = [tokens[:, 3:].mT.unflatten(2, (2, 4)) for tokens in four]
    assert torch.equal(found["patches_even4"], torch.cat(maps, 1))
    assert torch.equal(found["cls_even4"], torch.cat([tokens[:, 0] for tokens in four], 1))
    assert torch.equal(found["patches_raw"], maps[-1])
    assert torch.equal(found["cls_raw"], four[-1][:, 0])
    after = encoder.outputs(x, {"patches", "patches_raw", "embed"})
    with torch.no_grad():
        normed = module.norm(after["patches_raw"].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(after["patches"], normed)
    assert torch.equal(after["embed"], encoder.outputs(x, {"embed"})["embed"])
    assert not {"patches_even4", "cls_even4"} & tall_vit(depth=3).names


def test_the_mean_of_the_last_six_blocks_is_aims() -> None:
    """apple/ml-aim bd9e068 aim/v1/torch/layers.py, AverageLayers: a mean over blocks, before the final norm."""
    encoder, x = tall_vit(), torch.randn(2, 3, 28, 56)
    module, features = blocks_seen(encoder, x)
    feats = torch.stack([features[layer] for layer in range(2, 8)], dim=-1).mean(dim=-1)[:, 3:]
    found = encoder.outputs(x, {"patches_mean6", "patches_even4", "patches_raw", "cls_raw"})
    torch.testing.assert_close(found["patches_mean6"], feats.mT.unflatten(2, (2, 4)))
    assert torch.equal(found["patches_raw"], features[7][:, 3:].mT.unflatten(2, (2, 4)))
    assert torch.equal(found["cls_raw"], features[7][:, 0])
    assert found["patches_even4"].shape == (2, 4 * 24, 2, 4)
    pooled = small_vit(depth=8, patch_size=14, img_size=42, init_values=1.0, reg_tokens=2, pooling="mean6")
    pooled.module.load_state_dict(module.state_dict())
    torch.testing.assert_close(pooled.outputs(x, {"embed"})["embed"], feats.mean(1))
    assert pooled.card.embed == "mean of the patch tokens of the last 6 blocks without a norm (24-d)"
    assert "patches_mean6" not in tall_vit(depth=5).names
    with pytest.raises(InputError, match="has 5 blocks, and embed=mean6 averages the last 6"):
        small_vit(depth=5, pooling="mean6")


def test_dinov2s_depth_head_on_four_blocks(data: Path, tmp_path: Path) -> None:
    for variant, width in (("dinov2_linear1", 2 * 24), ("dinov2_linear4", 8 * 24)):
        small = find_protocol(f"nyu_depth_linear.{variant}@2").changed(crop=(64, 64), published=1e-3, **TWO_STEPS)
        outcome = run(LinearDepth(), small, data, tmp_path / variant, tall_vit())
        assert outcome.tensors["weight"].shape == (256, width)
        assert "bn.weight" not in outcome.tensors
    with pytest.raises(InputError, match="has no patches_even4, which this protocol reads"):
        run(LinearDepth(), small, data, tmp_path / "pixels")


def test_dinov2s_multi_scale_evaluation_averages_probabilities(data: Path, tmp_path: Path) -> None:
    protocol = find_protocol("ade20k_seg_linear.dinov2_ms@1")
    train, test = splits(protocol, data)
    params = (
        LinearSegmentation().params(protocol).changed(short_side=56, crop=56, window_stride=40, test_ratios=(1.0, 1.32))
    )
    encoder, style = tall_vit(), MaskFormat.of("ade20k", train)
    problem = LinearSegmentationProblem(params, style, train, test, np.arange(1), options(tmp_path))
    assert choose_map(encoder, 56, 16, pad=True, layers="last4") == ("patches4", 4 * 24)
    bank = head_bank(4 * 24, 13, 2, 0).eval()
    with torch.no_grad():
        bank.weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
    model = HeadsModel(encoder, "patches4", bank, problem)
    size = style.read(test.annotations[0]).shape
    found = problem.predicted(model, test.paths[0], size)
    image = Image.open(test.paths[0]).convert("RGB")
    for head in range(2):
        total = torch.zeros(1, 13, *size)
        for short in (56, 73):  # int(56 * 1.32)
            width, height = short_side_size(image.size, short)
            small = image.resize((width, height), Image.Resampling.BILINEAR)
            for mirrored in (False, True):
                shown = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else small
                x = encoder.normalise(torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1)[None])
                logits, count = torch.zeros(1, 13, height, width), torch.zeros(height, width)
                for rows, columns in windows(height, width, 56, 40):
                    window = padded(x[:, :, rows, columns], 14)
                    maps = encoder.outputs(window, {"patches4"})["patches4"]
                    with torch.no_grad():
                        part = torch.einsum("kc,nchw->nkhw", bank.weight[head], maps / (1 + 1e-5) ** 0.5)
                    shape = (rows.stop - rows.start, columns.stop - columns.start)
                    logits[:, :, rows, columns] += F.interpolate(part, shape, mode="bilinear", align_corners=False)
                    count[rows, columns] += 1
                whole = F.interpolate(logits / count, size, mode="bilinear", align_corners=False).softmax(1)
                total += whole.flip(3) if mirrored else whole
        agree = (total.argmax(1)[0].numpy() + style.first) == found[head]
        assert agree.mean() > 0.999  # ties of rounding
    single = LinearSegmentationProblem(
        params.changed(test_ratios=(1.0,), flip_test=False), style, train, test, np.arange(1), options(tmp_path)
    )
    assert (single.predicted(model, test.paths[0], size)[0] != found[0]).any()
    for name, default in (("layers", "last"), ("test_ratios", (1.0,)), ("flip_test", False)):
        assert name in protocol.params
        assert name not in find_protocol("ade20k_seg_linear.dinov2@1").params
        assert getattr(DINOV2, name) == default


def _unpadded(encoder: Any) -> Any:
    def refuse(images: torch.Tensor, names: Any) -> dict[str, torch.Tensor]:
        if images.shape[-1] % 14:
            raise AssertionError("Input image height (64) is not a multiple of patch height 14")
        return {name: encoder.outputs(images, {name})[name] for name in names}

    return Encoder(encoder.card, encoder.module, refuse, encoder.names)
