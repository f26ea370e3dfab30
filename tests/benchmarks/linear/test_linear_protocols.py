"""The protocols against the numbers of their sources, written down a second time by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.linear.protocols import PROTOCOLS
from benchmarks.linear.settings import probe_settings, stored_settings
from results.schema import Geometry, Protocol

BY_ID = {protocol.id: protocol for protocol in PROTOCOLS}
FEATURES = tuple(f"feature{n}" for n in range(1, 6))

# optimiser, rate, decay, nesterov, batch, epochs, schedule, drops
AVGPOOL = {
    "moco": ("sgd", 30, 0, False, 256, 100, "step", (60, 80)),
    "mmselfsup": ("sgd", 30, 0, False, 256, 100, "step", (60, 80)),
    "simsiam": ("lars", 1.6, 0, False, 4096, 90, "cosine", ()),
    "swav": ("sgd", 0.3, 1e-6, False, 256, 100, "cosine", ()),
    "barlowtwins": ("sgd", 0.3, 1e-6, False, 256, 100, "cosine", ()),
    "mocov3": ("sgd", 12, 0, False, 1024, 90, "cosine", ()),
}
# data set and variant: epochs, drops, decay, batch norm, view, colour noise
MULTIHEAD = {
    "linear_multihead.mmselfsup@1": (90, (30, 60, 90), 1e-4, "plain", "resized_crop", True),
    "linear_multihead_places205.mmselfsup@1": (28, (7, 14, 21), 1e-4, "plain", "stored_crop", False),
    "linear_multihead_inat18.mmselfsup@1": (84, (24, 48, 72), 1e-4, "plain", "resized_crop", False),
    "linear_multihead.vissl@1": (28, (8, 16, 24), 5e-4, "affine", "resized_crop", False),
    "linear_multihead_places205.vissl@1": (14, (4, 8, 12), 5e-4, "affine", "resized_crop", False),
    "linear_multihead_inat18.vissl@1": (84, (24, 48, 72), 5e-4, "affine", "resized_crop", False),
    "linear_multihead.fssb@1": (28, (40_000, 80_000, 120_000), 1e-4, "plain", "resized_crop", True),
    "linear_multihead_places205.fssb@1": (15, (40_000, 80_000, 120_000), 1e-4, "plain", "resized_crop", True),
}


@pytest.mark.parametrize("variant", AVGPOOL)
def test_avgpool_probes(variant: str) -> None:
    protocol = BY_ID[f"linear_avgpool.{variant}@1"]
    settings = probe_settings(protocol)
    optimiser, lr, decay, nesterov, batch, epochs, schedule, drops = AVGPOOL[variant]
    assert (settings.optimiser, settings.grid, settings.nesterov) == (optimiser, ((lr, decay),), nesterov)
    assert (settings.batch_size, settings.epochs, settings.schedule) == (batch, epochs, schedule)
    assert (settings.drops, settings.gamma, settings.momentum, settings.init_std) == (drops, 0.1, 0.9, 0.01)
    assert (settings.outputs, settings.batch_norm, settings.pooling) == (("embed",), "none", {})
    assert (settings.view, settings.crop_area, settings.flip_p) == ("resized_crop", (0.08, 1.0), 0.5)
    assert (settings.jitter, settings.lighting, settings.heldout, settings.precision) == (0, 0, 0, "fp32")
    assert (settings.evaluate_every, settings.choose_epoch) == (1, "best")
    assert protocol.geometry == Geometry(mode="shorter", resize=256, crop=224)
    assert "best" in protocol.selection


@pytest.mark.parametrize("identifier", MULTIHEAD)
def test_multihead_probes(identifier: str) -> None:
    protocol = BY_ID[identifier]
    settings = probe_settings(protocol)
    epochs, drops, decay, batch_norm, view, colour = MULTIHEAD[identifier]
    assert (settings.epochs, settings.drops, settings.grid) == (epochs, drops, ((0.01, decay),))
    assert (settings.batch_norm, settings.view, settings.batch_size) == (batch_norm, view, 256)
    assert (settings.jitter, settings.lighting) == ((0.4, 0.1) if colour else (0, 0))
    assert (settings.optimiser, settings.momentum, settings.nesterov) == ("sgd", 0.9, True)
    assert settings.outputs == FEATURES
    assert settings.choose_epoch == "last"
    assert settings.iterations == (140_000 if "fssb" in identifier else None)
    kernels = [(p.kernel, p.stride, p.padding) for p in (settings.pooling[name] for name in FEATURES)]
    assert kernels == [(10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)]


@pytest.mark.parametrize(("dataset", "images"), [("imagenet", 1_281_167), ("places205", 2_448_873)])
def test_the_iterations_of_fssb_are_so_many_epochs(dataset: str, images: int) -> None:
    protocol = next(p for p in PROTOCOLS if p.variant == "fssb" and p.dataset == dataset)
    settings = probe_settings(protocol)
    assert settings.iterations is not None
    assert settings.epochs == math.ceil(settings.iterations / math.ceil(images / 256))


def test_each_command_has_a_default_for_full_and_for_embedded_data() -> None:
    for command, benchmark, variant in (
        ("linear", "linear_avgpool", "moco"),
        ("multihead", "linear_multihead", "mmselfsup"),
        ("linear-stored", "linear_stored", "imagefolder"),
    ):
        for expected in (variant, "demo"):
            found = [p for p in PROTOCOLS if (p.harness, p.benchmark, p.variant) == (command, benchmark, expected)]
            assert len(found) == 1


def test_ids_are_unique_and_survive_json() -> None:
    assert len(BY_ID) == len(PROTOCOLS)
    for protocol in PROTOCOLS:
        again = Protocol.model_validate_json(protocol.model_dump_json())
        assert again.content_sha256() == protocol.content_sha256()
        typed = stored_settings if protocol.harness == "linear-stored" else probe_settings
        assert typed(again) == typed(protocol)


def test_no_figure_of_the_fast_variant_is_called_avgpool() -> None:
    fast = [p for p in PROTOCOLS if p.harness == "linear-stored"]
    assert fast
    assert not [column for p in fast for column in p.columns if "AvgPool" in column]


def test_the_small_protocols_never_choose_on_test() -> None:
    for protocol in (p for p in PROTOCOLS if p.variant == "demo"):
        assert "held-out part of train" in protocol.selection
        assert protocol.params["heldout"] > 0
