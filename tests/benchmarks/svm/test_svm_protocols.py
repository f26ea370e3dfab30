"""The protocol values as they stand in the sources that the protocols name."""

from __future__ import annotations

import pytest

from benchmarks.contract import InputError
from benchmarks.harnesses import harness
from benchmarks.overrides import typed
from benchmarks.svm.protocols import PROTOCOLS
from benchmarks.svm.settings import FullParams, LowShotParams, cost_selection, required_outputs
from results.schema import Protocol

BY_ID = {protocol.id: protocol for protocol in PROTOCOLS}
FULL = [f"voc07_svm.{variant}@1" for variant in ("mmselfsup", "vissl", "fssb")]
LOW_SHOT = [f"voc07_low_shot_svm.{variant}@1" for variant in ("mmselfsup", "vissl", "fssb")]


def test_ids() -> None:
    assert set(BY_ID) == {
        *FULL,
        "voc07_svm.adaptive@1",
        "voc07_svm.demo@1",
        *LOW_SHOT,
        "voc07_low_shot_svm.adaptive@1",
        "voc07_low_shot_svm.demo@1",
        "places205_low_shot_svm.fssb@1",
    }


@pytest.mark.parametrize(("ids", "model"), [(FULL, FullParams), (LOW_SHOT, LowShotParams)])
def test_costs(ids: list[str], model: type[FullParams] | type[LowShotParams]) -> None:
    mmselfsup, vissl, fssb = (typed(model, BY_ID[id]) for id in ids)
    assert mmselfsup.costs[:4] == (1, 10, 100, 0.0625)
    assert mmselfsup.costs[-1] == 0.5**19
    assert len(mmselfsup.costs) == 19
    assert vissl.costs == (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    assert fssb.costs[:10] == (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100)
    assert fssb.costs[10:] == mmselfsup.costs[3:]
    for params in (mmselfsup, vissl, fssb):
        assert (params.positive_weight, params.negative_weight) == (2, 1)


@pytest.mark.parametrize("id", FULL)
def test_full(id: str) -> None:
    protocol = BY_ID[id]
    params = typed(FullParams, protocol)
    assert (params.folds, params.ignore_in_train) == (3, "negative")
    assert (protocol.dataset, protocol.train_split, protocol.test_split) == ("voc2007", "trainval", "test")
    assert (protocol.geometry.mode, protocol.geometry.resize, protocol.geometry.crop) == ("warp", 256, 224)
    assert protocol.columns == (*(f"feature{i}" for i in range(1, 6)), "embed", "best", "best_oracle")


@pytest.mark.parametrize("id", LOW_SHOT)
def test_low_shot(id: str) -> None:
    protocol = BY_ID[id]
    params = typed(LowShotParams, protocol)
    assert params.k == (1, 2, 4, 8, 16, 32, 64, 96)
    assert params.sets == 5
    assert protocol.columns[:8] == tuple(f"k={k}" for k in params.k)
    assert protocol.geometry.resize == (0 if "vissl" in id else 256)


def test_fixed_pooling_by_its_published_kernels() -> None:
    outputs = required_outputs(BY_ID["voc07_svm.mmselfsup@1"])
    kernels = {
        name: (pooling.kernel, pooling.stride, pooling.padding)  # type: ignore[union-attr]
        for name, (_, pooling) in outputs.items()
        if pooling is not None
    }
    assert kernels == {
        "feature1": (10, 10, 4),
        "feature2": (16, 8, 0),
        "feature3": (13, 5, 0),
        "feature4": (8, 3, 0),
        "feature5": (6, 1, 0),
    }
    assert outputs["embed"] == ("embed", None)


def test_adaptive_grids() -> None:
    outputs = required_outputs(BY_ID["voc07_svm.adaptive@1"])
    assert [outputs[f"feature{i}"][1].grid for i in range(1, 6)] == [12, 6, 4, 3, 2]  # type: ignore[union-attr]


def test_an_override_makes_another_id() -> None:
    dropped = BY_ID["voc07_svm.mmselfsup@1"].with_overrides(ignore_in_train="drop")
    assert dropped.id == "voc07_svm.mmselfsup@1+ignore_in_train=drop"


def test_columns_and_the_choice_that_is_told_follow_an_override() -> None:
    pooled = harness("voc-svm").override(BY_ID["voc07_svm.mmselfsup@1"], {"outputs": {"embed": None}, "folds": 5})
    assert (pooled.columns, pooled.primary) == (("embed",), "embed")
    assert cost_selection(typed(FullParams, pooled)) == "cost per class by 5-fold CV on trainval"
    assert BY_ID["voc07_svm.mmselfsup@1"].selection == "cost per class by 3-fold CV on trainval"


def test_maps_that_nobody_pools_are_refused() -> None:
    with pytest.raises(InputError, match="feature5 are maps"):
        harness("voc-svm").override(BY_ID["voc07_svm.mmselfsup@1"], {"outputs": {"feature5": None}})


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.id)
def test_every_protocol_names_its_source_and_survives_json(protocol: Protocol) -> None:
    assert protocol.source.repository
    again = Protocol.model_validate_json(protocol.model_dump_json())
    assert again == protocol
    assert required_outputs(again) == required_outputs(protocol)
