"""The fast variant of the linear probe: logistic regression on stored features, seconds instead of hours."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.contract import InputError, Outcome, Split
from benchmarks.linear.regression import Fit, Regression
from benchmarks.linear.settings import StoredSettings, stored_settings
from benchmarks.progress import progress as bar
from benchmarks.training.check import check_single_label
from benchmarks.training.held_out import held_out
from results.schema import Protocol, Score

SPLIT_SEED = 0  # which items of train are held out: part of the protocol, as the solver draws nothing


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """Feature key to (encoder output, no pooling)."""
    output = stored_settings(protocol).output
    return {output: (output, None)}


def run(protocol: Protocol, train: Split, test: Split, *, device: str = "cpu", progress: bool = True) -> Outcome:
    """Fit the path of penalties on a part of train, choose by the rest, and measure the choice fitted on all of train.

    Raises:
        InputError: the labels are not one class per image, or a feature is not finite.
    """
    settings = stored_settings(protocol)
    check_single_label(protocol, train.labels, test.labels)
    kept, held = held_out(train.labels, settings.heldout, SPLIT_SEED)
    if not len(held):
        raise InputError(f"{protocol.id}: no class has two images in train, so none can be held out: give more images")
    started = time.perf_counter()
    part = Regression(train, kept, settings, torch.device(device))
    path = part.path(bar(settings.penalties, "choosing the penalty", show=progress))
    heldout = [100 * float((part.ranks(train, held, fit) < 1).double().mean()) for fit in path]
    chosen = int(np.argmax(heldout))  # the first of equals, which is the most regularised
    selected = time.perf_counter()

    whole = Regression(train, np.arange(len(train.labels)), settings, torch.device(device))
    fits = list(whole.path(bar(settings.penalties, "fitting all of train", show=progress)))
    ranks = [whole.ranks(test, np.arange(len(test.labels)), fit) for fit in fits]
    oracle = int(np.argmax([int((found < 1).sum()) for found in ranks]))

    outcome = Outcome(scores={}, seeds=(SPLIT_SEED,))
    outcome.timing = {"select": selected - started, "fit": time.perf_counter() - selected}
    for index, (penalty, fit, found) in enumerate(zip(settings.penalties, fits, ranks, strict=True)):
        row: dict[str, Any] = {"penalty": penalty, "chosen": index == chosen, "heldout_top1": heldout[index]}
        row |= {f"top{k}": 100 * float((found < k).double().mean()) for k in (1, 5)}
        found_optimum = {"iterations": fit.iterations, "gradient": fit.gradient, "converged": _converged(fit, settings)}
        outcome.runs.append(row | found_optimum)
    for name, index, how in (
        ("Stored", chosen, protocol.selection),
        ("Stored oracle", oracle, "best penalty on test (oracle)"),
    ):
        unfinished = (
            "" if _converged(fits[index], settings) else f" (not converged: gradient {fits[index].gradient:.1e})"
        )
        for title, k in ((name, 1), (f"{name} top-5", 5)):
            if title in protocol.columns:
                right = ranks[index] < k
                value = 100 * float(right.double().mean())
                outcome.scores[title] = Score(value=value, n=len(right), selection=how + unfinished)
                outcome.items[f"correct/{title}"] = right.numpy()
    weight, bias = whole.on_raw_features(fits[chosen])
    outcome.tensors = {"Stored/weight": weight, "Stored/bias": bias}
    return outcome


def _converged(fit: Fit, settings: StoredSettings) -> bool:
    """Whether L-BFGS ended at the optimum, and not at its limit of iterations or where rounding stopped it.

    The accuracy of such a classifier is still that of the classifier that was measured, so it is told and not refused.
    """
    return fit.gradient <= settings.tolerance
