"""The operations that a limit is made of are those that torch counts, by shape, and in-place products too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.logistic import TYPICAL_STEPS
from pretrain.distributed import row_products
from results.errors import InputError
from scripts.speed import __main__ as speed
from scripts.speed import gpu
from scripts.speed.classifiers import sweep_params
from scripts.speed.measurement import Shape, count_products, cpu, limit_of, rounds


def test_products_are_counted_by_shape() -> None:
    a, b, out = torch.ones(3, 5), torch.ones(5, 7), torch.zeros(3, 7)

    def work() -> None:
        for _ in range(2):
            a @ b
        out.addmm_(a, b)
        torch.ones(4, 3, 5, dtype=torch.float64) @ torch.ones(4, 5, 2, dtype=torch.float64)
        torch.einsum("ik,kj->ij", a, b)
        row_products(a, b.T.contiguous())

    calls = count_products(work)
    assert calls.pop(Shape(4, 3, 5, 2, torch.float64)) == 1
    assert sum(shape.flops * count for shape, count in calls.items()) == 5 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 4])
def test_a_network_has_the_operations_that_torch_counts(groups: int) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 6))
    images = torch.ones(2, 4, 7, 7)
    with torch.inference_mode():
        calls = count_products(lambda: network(images))
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert sum(shape.flops * count for shape, count in calls.items()) == counter.get_total_flops()
    seconds, flops = limit_of(calls)
    assert flops == counter.get_total_flops()
    assert 0 < seconds < float("inf")


def test_every_entry_has_a_plan_and_all_of_them_take_less_than_a_quarter_of_an_hour() -> None:
    names = [name for module in speed.MODULES for name in module.entries()]
    assert set(names) <= set(speed.PLANNED)
    assert sum(s for name, s in speed.PLANNED.items() if not name.startswith("gpu-")) < 15 * 60


def test_a_first_word_names_all_its_entries_and_what_needs_a_gpu_says_so() -> None:
    entries = ("knn", "knn-faiss", "gpu-step", "gpu-knn")
    assert speed.chosen_of((), entries) == entries
    assert speed.chosen_of(("gpu",), entries) == ("gpu-step", "gpu-knn")
    assert speed.chosen_of(("gpu-knn", "gpu", "knn"), entries) == ("gpu-knn", "gpu-step", "knn")
    for name in ("gpu", "gpu-step"):
        with pytest.raises(InputError, match=rf"{name} is measured on a GPU only: \w+"):
            speed.chosen_of((name,), ("knn", "knn-faiss"))
    with pytest.raises(InputError, match="no entry 'kn'; did you mean 'knn'"):
        speed.chosen_of(("kn",), ("knn", "knn-faiss"))


def test_expected_figures_of_the_docs_follow_from_work_peak_and_share() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gpus.md").read_text(encoding="utf-8")
    number = r"([\d,.]+)"
    pattern = rf"\| (.+?) \| {number} GFLOP \| (\w+) \| {number} TFLOP/s \| {number} % \| {number} \|"
    rows = re.findall(pattern, page)
    assert len(rows) == 6
    work = {}
    for architecture, name in (("ResNet-50", "resnet50"), ("ViT-L/16", "vit_large_patch16_224")):
        with torch.device("meta"):
            network, image = timm.create_model(name, num_classes=0).eval(), torch.zeros(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            network(image)
        work[architecture] = counter.get_total_flops() / 1e9
    for what, stated, model, peak, share, expected in rows:
        passes = 4 if what.startswith("MoCo") else 1
        assert float(stated) == pytest.approx(passes * work[what.partition(", ")[2]], rel=2e-3)
        calculated = float(peak) * 1e3 * float(share) / 100 / float(stated)
        assert float(expected.replace(",", "")) == pytest.approx(calculated, rel=0.03), what
        entry = "gpu-step" if passes == 4 else "gpu-extract-vit" if "ViT" in what else "gpu-extract"
        assert gpu.EXPECTED[entry][model] == float(expected.replace(",", ""))
    pairs, row_bytes = gpu.QUERIES * gpu.GALLERY, 4 * gpu.GALLERY * gpu.DIM
    assert pytest.approx(262, rel=2e-3) == 2 * pairs * gpu.DIM / 1e12
    read_again, scored_bytes = 2 * row_bytes / 10e9, 52 * gpu.QUERIES * 230 * gpu.DIM
    a_pass, passes = 4 * gpu.GALLERY * gpu.DIM * gpu.CLASSES, TYPICAL_STEPS / 2 * len(sweep_params().costs)
    for model, peak, cache, bus, float32, memory in (("A100", 312, 4, 25, 19.5, 2.04), ("H100", 989, 6, 50, 67, 3.35)):
        found = 2 * pairs * gpu.DIM / (0.6e12 * peak) + 18 * 4 * pairs / (cache * 1e12) + row_bytes / (bus * 1e9)
        scored = read_again + scored_bytes / (0.8e12 * memory)
        assert found + scored == pytest.approx(gpu.EXPECTED["gpu-knn"][model], rel=0.03)
        assert f"{gpu.EXPECTED['gpu-knn'][model]} s on an {model}" in page
        fit = passes * (3 * a_pass / (0.6e12 * peak) + 78 * gpu.GALLERY * gpu.CLASSES / (0.8e12 * memory))
        assert fit == pytest.approx(gpu.EXPECTED["gpu-logistic"][model], rel=0.03)
        assert passes * a_pass / (0.8e12 * float32) > 2 * fit
        assert f"{gpu.EXPECTED['gpu-logistic'][model]} s on an {model}" in page
    assert 2470 * 3 * work["ResNet-50"] / 312e3 == pytest.approx(0.19, abs=0.005)


def test_rounds_stop_before_the_time_is_over_and_the_machine_is_named() -> None:
    assert list(rounds(3, 60.0)) == [0, 1, 2]
    assert list(rounds(3, 0.0)) == [0]
    assert " cores, " in cpu()
