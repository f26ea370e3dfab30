"""The resolved configurations against the values as they stand in the sources, field by field."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.segmentation import model
from benchmarks.segmentation.model import model_config, optimisation, pipelines
from benchmarks.segmentation.task import CITYSCAPES_PROTOCOLS, VOC_PROTOCOLS, SegmentationParams
from benchmarks.task import InputError, NotApplicableError
from benchmarks.training import trials
from results.schema import Architecture, EncoderCard, Protocol

EXPECTED = Path(__file__).parents[2] / "expected" / "segmentation"
PUBLISHED = [p for p in (*VOC_PROTOCOLS, *CITYSCAPES_PROTOCOLS) if p.variant != "demo"]

needs_library = pytest.mark.skipif(
    not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer"
)
pytestmark = pytest.mark.filterwarnings("ignore")


def card(name: str = "resnet50", **fields: Any) -> EncoderCard:
    return EncoderCard(name="an encoder", source="test", architecture=Architecture(name=name), **fields)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted paths to leaves; numbers of lists are parts of paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= flat(part, f"{path}.{key}" if path else str(key))
    return found or {path: value}


def params_of(protocol: Protocol) -> SegmentationParams:
    return SegmentationParams.model_validate(protocol.params)


def resolved(params: SegmentationParams) -> dict[str, Any]:
    train, test = pipelines(params)
    wrapper, schedule = optimisation(params)
    return flat(
        {
            "model": model_config(params, card(), synchronised=True),
            "train": train,
            "test": test,
            "optim_wrapper": wrapper,
            "param_scheduler": list(schedule),
            "batch": params.batch_size,
            "iterations": params.iterations,
            "trials": params.trials,
        }
    )


@needs_library
@pytest.mark.parametrize("protocol", PUBLISHED, ids=lambda p: p.id)
def test_every_resolved_field_is_the_sources(protocol: Any) -> None:
    expected = json.loads((EXPECTED / f"{protocol.id}.json").read_text(encoding="utf-8"))
    found = resolved(params_of(protocol))
    assert {k: v for k, v in found.items() if k not in expected} == {}, "not in the source"
    assert {k for k in expected if k not in found} == set(), "in the source alone"
    differing = {k: (found[k], expected[k]) for k in expected if found[k] != pytest.approx(expected[k])}
    assert differing == {}


def test_strides_8_and_16_never_share_a_benchmark() -> None:
    def stride(protocol: Any) -> int:
        product = 4
        for s in params_of(protocol).strides:
            product *= s
        return product

    by_benchmark: dict[str, set[int]] = {}
    for protocol in PUBLISHED:
        by_benchmark.setdefault(protocol.benchmark, set()).add(stride(protocol))
    assert all(len(strides) == 1 for strides in by_benchmark.values())
    assert {8, 16} == set().union(*by_benchmark.values())


@needs_library
def test_normalisation_and_channel_order_are_the_cards() -> None:
    params = params_of(PUBLISHED[0])
    bgr = card(channels="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), value_range=255.0)
    preprocessor = model_config(params, bgr, synchronised=False)["data_preprocessor"]
    assert preprocessor["bgr_to_rgb"] is False
    assert preprocessor["mean"] == pytest.approx([103.53, 116.28, 123.675])
    assert preprocessor["std"] == pytest.approx([1, 1, 1])
    rgb = model_config(params, card(), synchronised=False)["data_preprocessor"]
    assert rgb["bgr_to_rgb"] is True
    assert rgb["mean"] == pytest.approx([123.675, 116.28, 103.53])


@needs_library
def test_one_process_has_ordinary_batch_norms() -> None:
    config = model_config(params_of(PUBLISHED[0]), card(), synchronised=False)
    parts = (config["backbone"], config["decode_head"], config["auxiliary_head"])
    assert {part["norm_cfg"]["type"] for part in parts} == {"BN"}


def test_an_encoder_that_is_no_resnet_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"an encoder: segmentation protocols are for ResNets: timm:vit_small is not a ResNet"
    ):
        model_config(params_of(PUBLISHED[0]), card("timm:vit_small"), synchronised=False)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="window_stride between 1 and 512"):
        PUBLISHED[0].changed(inference="windows")


def test_a_schedule_of_another_length_needs_its_own_drops() -> None:
    moco = next(p for p in PUBLISHED if p.id == "voc12aug_fcn_s16.moco@1")
    with pytest.raises(InputError, match=r"drops \(21000, 27000\) must ascend and lie within the 3000 iterations"):
        moco.changed(iterations=3000)
    shorter = moco.changed(iterations=3000, drops=(2100, 2700), batch_size=8)
    assert shorter.id == "voc12aug_fcn_s16.moco@1+batch_size=8+drops=2100,2700+iterations=3000"
    with pytest.raises(InputError, match="must be positive and in ascending order"):
        moco.changed(ratio=(2, 0.5))


def test_a_wide_resnet_is_refused_in_one_sentence() -> None:
    with pytest.raises(NotApplicableError, match="cannot have the wide 3x3 convolutions of wide_resnet50_2"):
        model_config(params_of(PUBLISHED[0]), card("wide_resnet50_2"), synchronised=False)


def test_without_mmsegmentation_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "find_spec", lambda name: None if name == "mmseg" else object())
    with pytest.raises(InputError, match="needs mmseg, which is not installed; run `make setup-transfer`"):
        model.require_library()

    def fails() -> None:
        raise AssertionError("MMCV==2.3.6 is used but incompatible")

    monkeypatch.setattr(trials, "find_spec", lambda name: name)
    monkeypatch.setattr(model, "register", fails)
    with pytest.raises(InputError, match=r"cannot be imported \(MMCV==2.3.6 is used but incompatible\)"):
        model.require_library()
