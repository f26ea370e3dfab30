"""Stored features in half precision, by a flag: their bytes, their numbers, their address, and what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import evaluate
from benchmarks.features.extract import FeatureRequest
from benchmarks.features.shards import WidenedRows, narrowed, widened
from benchmarks.features.store import FeatureStore
from benchmarks.solvers.class_means import class_means
from benchmarks.solvers.exact_knn import exact_knn, norms
from benchmarks.solvers.logistic import fit_logistic
from benchmarks.solvers.svm import fit_cross_validated
from benchmarks.task import InputError, Labels
from results.schema import Geometry
from tests.benchmarks.features.run_options import options

GEOMETRY = Geometry(mode="shorter", resize=24, crop=24)
ENCODER = "random:resnet18-w8-k3-nopool:0"


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    edges = np.array([0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -3.4e38, np.inf, -np.inf, 1e-40], np.float32)
    rows = np.concatenate([bits.view(np.float32), edges])
    rows = rows[~np.isnan(rows)]
    expected = torch.from_numpy(rows).bfloat16().float().numpy()
    assert np.array_equal(widened(narrowed(rows)), expected)
    assert np.isnan(widened(narrowed(np.array([np.nan], np.float32)))).all()


def test_half_the_bytes_at_an_address_of_their_own(labels: Labels, tmp_path: Path, small_shards: int) -> None:
    encoder = load_encoder(ENCODER)
    plain = FeatureRequest(encoder, labels, GEOMETRY, {"embed": ("embed", None)})
    store = FeatureStore(options(tmp_path))
    (full,) = store.get([plain])
    wide = np.asarray(full.features["embed"])
    for stored, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        request = FeatureRequest(encoder, labels, GEOMETRY, {"embed": ("embed", None)}, stored=stored)  # type: ignore[arg-type]
        assert request.address != plain.address
        assert store.bytes_to_write([request]) == {"embed": wide.nbytes // 2}
        (split,) = store.get([request])
        assert np.load(tmp_path / request.address / "embed.npy", mmap_mode="r").nbytes == wide.nbytes // 2
        expected = torch.from_numpy(np.array(wide)).to(dtype).float().numpy()
        assert np.array_equal(np.asarray(split.features["embed"], np.float32), expected)
        mapped: object = split.features["embed"]
        assert isinstance(mapped.bits if isinstance(mapped, WidenedRows) else mapped, np.memmap)
        assert store.bytes_to_write([request]) == {}
    assert "stored" not in plain.description


def test_mapped_bfloat16_is_an_array_of_float32_to_what_reads_it(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    np.save(tmp_path / "bits.npy", narrowed(wide))
    expected = widened(narrowed(wide))
    rows: Any = WidenedRows(np.load(tmp_path / "bits.npy", mmap_mode="r"))
    assert (rows.shape, rows.ndim, len(rows), rows.dtype) == ((40, 12), 2, 40, np.float32)
    order = np.random.default_rng(1).permutation(40)
    for index in (slice(3, 9), order, order > 20, 7, [5, 2], (slice(None), 3)):
        found = rows[index]
        assert found.dtype == np.float32
        assert not isinstance(found, np.memmap)
        assert np.array_equal(found, expected[index])
    assert np.array_equal(np.asarray(rows), expected)
    assert np.array_equal(np.asarray(rows, np.float64), expected.astype(np.float64))
    assert np.array_equal(rows.astype(np.float64), expected.astype(np.float64))
    assert np.array_equal(rows.reshape(80, 6)[11:13], expected.reshape(80, 6)[11:13])
    assert np.isfinite(rows).all()
    targets = np.arange(40) % 4
    assert torch.equal(class_means(rows, targets, 4), class_means(expected, targets, 4))
    assert np.array_equal(norms(rows), norms(expected))
    assert np.array_equal(exact_knn(rows, rows, 3).indices, exact_knn(expected, expected, 3).indices)
    for fit in (logistic_fit, gram_of):
        assert np.array_equal(fit(rows), fit(expected))
    with pytest.raises(TypeError):
        torch.from_numpy(rows)  # not an array of NumPy's, so that its bits are never taken for numbers


def logistic_fit(rows: Any) -> Any:
    return fit_logistic(rows, np.arange(40) % 4, 4, [1.0]).weights.numpy()


def gram_of(rows: Any) -> Any:
    signs = np.arange(40) % 4 == np.arange(4)[:, None]
    folds = np.tile(np.arange(40) % 3, (4, 1)).astype(np.int8)
    return fit_cross_validated(rows, signs, np.ones((4, 40)), folds, (1.0,), tolerance=1e-6).decisions(rows)


def test_what_the_format_cannot_hold_is_refused_with_the_remedy(labels: Labels, tmp_path: Path) -> None:
    encoder = load_encoder("pixels")
    encoder.card = encoder.card.model_copy(update={"std": (1e-6, 1e-6, 1e-6), "mean": (0.9, 0.9, 0.9)})
    request = FeatureRequest(encoder, labels, GEOMETRY, {"embed": ("embed", None)}, stored="fp16")
    with pytest.raises(InputError, match=r"NaN or infinite embed.*--stored fp32"):
        FeatureStore(options(tmp_path)).get([request])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["knn.demo", "ncm.demo", "logistic.demo"])
def test_the_record_says_the_format_and_the_score_hardly_moves(small_data: Path, tmp_path: Path, protocol: str) -> None:
    own = replace(options(tmp_path / "features"), records=tmp_path / "records")
    changes = {"costs": (0.01, 1.0)} if protocol == "logistic.demo" else {}
    plain = evaluate("pixels", protocol, small_data, options=own, changes=changes)
    for stored in ("fp16", "bf16"):
        found = evaluate("pixels", protocol, small_data, options=replace(own, stored=stored), changes=changes)
        assert f"stored={stored}" in found.protocol.resolved.id
        assert found.key != plain.key
        column = plain.protocol.resolved.primary
        assert found.scores[column].value == pytest.approx(plain.scores[column].value, abs=5)


def test_a_benchmark_without_stored_features_refuses_the_flag(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads no stored features: leave out --stored fp16"):
        evaluate(ENCODER, "finetune_imagenet.demo", small_data, options=replace(options(tmp_path), stored="fp16"))
