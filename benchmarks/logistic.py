"""Logistic regression on stored features: a linear classifier in seconds instead of hours of training on views."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.task import FeatureTask, Labels, Outcome, Outputs, RunOptions, Split, progress
from benchmarks.training.labels import check_single_label, split_held_out
from benchmarks.training.params import Decays, Positive
from results.schema import Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from benchmarks.solvers.logistic import Fit

log = logging.getLogger(__name__)

SPLIT_SEED = 0  # chooses the held-out items: part of the protocol, as the solver draws nothing
COLUMNS = ("Stored", "Stored oracle", "Stored top-5", "Stored oracle top-5")


class LogisticParams(Params):
    """Multinomial logistic regression on stored features, full batch.

    The loss is the mean cross-entropy plus `penalty` / 2 times the squared norm of the weights (not of the bias), on
    features whose every dimension is standardised by train's mean and deviation.

    Attributes:
        penalties: in the order of the path, each fit starting from the one before.
        heldout: fraction of train that the penalty is chosen on.
        tolerance: largest component of the gradient at which a fit has converged.
        history: steps that L-BFGS remembers.
    """

    output: Literal["embed", "head"] = "embed"
    penalties: Decays
    heldout: float = Field(gt=0.0, lt=1.0)
    max_iterations: int = Field(500, gt=0)
    tolerance: Positive = 1e-5
    history: int = Field(10, gt=0)
    dtype: Literal["float32", "float64"] = "float32"
    chunk: int = Field(65536, gt=0, description="rows on the device at a time")


def _protocol(variant: str, params: LogisticParams, note: str, dataset: str, geometry: Geometry) -> Protocol:
    return Protocol.of(
        params,
        benchmark="linear_stored",
        variant=variant,
        harness="linear-stored",
        dataset=dataset,
        train_split="train",
        test_split="val",
        geometry=geometry,
        columns=COLUMNS,
        primary="Stored",
        metric="top-1 accuracy",
        selection="penalty chosen on a held-out part of train, then fitted on all of it",
        source=Source(repository="this project", note=note),
    )


_PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # from the most regularised, where the path starts
PROTOCOLS = (
    _protocol(
        "imagefolder",
        LogisticParams(penalties=_PENALTIES, heldout=0.1),
        "multinomial logistic regression by L-BFGS on any ImageFolder; not comparable with AvgPool, which sees views",
        "imagefolder",
        Geometry(mode="shorter", resize=256, crop=224),
    ),
    _protocol(
        "demo",
        LogisticParams(penalties=_PENALTIES, heldout=0.2, dtype="float64"),
        "linear_stored.imagefolder@1 on the embedded single drawings",
        "drawings",
        Geometry(mode="shorter", resize=48, crop=48),  # uncropped: a drawing may lie anywhere in its picture
    ),
)


@dataclass(frozen=True)
class StoredLogistic(FeatureTask[LogisticParams]):
    """Logistic regression on stored features, the fast variant of the linear probe."""

    name = "linear-stored"
    Params = LogisticParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        output = self.params(protocol).output
        return {output: (output, None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        check_single_label(protocol, train, test)
        split_held_out(protocol, train, self.params(protocol).heldout, SPLIT_SEED)

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Fit the path on a part of train, choose by the rest, and measure the choice fitted on all of train.

        Raises:
            InputError: the labels are not one class per image, or a feature is not finite.
        """
        import torch

        from benchmarks.solvers.linear_heads import top_k_percent
        from benchmarks.solvers.logistic import logistic_path

        params = self.params(protocol)
        check_single_label(protocol, train.labels, test.labels)
        kept, held = split_held_out(protocol, train.labels, params.heldout, SPLIT_SEED)
        rows, targets = train.features[params.output], train.labels.targets

        def path(items: NDArray[np.int64], description: str) -> Iterator[Fit]:
            return logistic_path(
                rows,
                items,
                targets,
                len(train.labels.classes),
                progress(params.penalties, description, show=options.progress),
                device=torch.device(options.device),
                dtype=torch.float64 if params.dtype == "float64" else torch.float32,
                chunk=params.chunk,
                max_iterations=params.max_iterations,
                tolerance=params.tolerance,
                history=params.history,
            )

        started = time.perf_counter()
        heldout = [
            top_k_percent(fit.ranks(rows, held, targets, params.chunk), 1) for fit in path(kept, "choosing the penalty")
        ]
        chosen = int(np.argmax(heldout))  # the first of equals, which is the most regularised
        selected = time.perf_counter()
        fits = list(path(np.arange(len(train.labels)), "fitting all of train"))
        every, test_rows = np.arange(len(test.labels)), test.features[params.output]
        ranks = [fit.ranks(test_rows, every, test.labels.targets, params.chunk) for fit in fits]
        oracle = int(np.argmax([int((r < 1).sum()) for r in ranks]))

        outcome = Outcome(seeds=(SPLIT_SEED,))
        outcome.timing = {"select": selected - started, "fit": time.perf_counter() - selected}
        # A fit that hit its limit of iterations is scored all the same: its accuracy is that of the classifier that was
        # measured. The record says so.
        converged = [fit.gradient <= params.tolerance for fit in fits]
        for index, (penalty, fit) in enumerate(zip(params.penalties, fits, strict=True)):
            log.info("penalty %g: %d iterations, gradient %.1e", penalty, fit.iterations, fit.gradient)
            row: dict[str, Any] = {"penalty": penalty, "chosen": index == chosen, "heldout_top1": heldout[index]}
            row |= {f"top{k}": top_k_percent(ranks[index], k) for k in (1, 5)}
            row |= {"iterations": fit.iterations, "gradient": fit.gradient, "converged": converged[index]}
            outcome.runs.append(row)
        for name, index, selection in (
            ("Stored", chosen, protocol.selection),
            ("Stored oracle", oracle, "best penalty on test (oracle)"),
        ):
            if not converged[index]:
                selection += f" (not converged: gradient {fits[index].gradient:.1e})"
            for column, k in ((name, 1), (f"{name} top-5", 5)):
                correct = ranks[index] < k
                outcome.scores[column] = Score(value=100 * float(correct.double().mean()), n=len(correct),
                                               selection=selection)  # fmt: skip
                outcome.items[f"correct/{column}"] = correct.numpy()
        weight, bias = fits[chosen].on_raw_features()
        outcome.tensors = {"Stored/weight": weight, "Stored/bias": bias}
        return outcome
