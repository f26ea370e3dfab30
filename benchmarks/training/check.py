"""What every linear benchmark asks of its labels."""

from __future__ import annotations

from benchmarks.contract import InputError, Labels
from results.schema import Protocol


def check_single_label(protocol: Protocol, train: Labels, test: Labels) -> None:
    """Both splits have images, one class per image, and the same classes.

    Raises:
        InputError: which of these is not so.
    """
    for split, labels in ((protocol.train_split, train), (protocol.test_split, test)):
        if labels.targets.ndim != 1:
            raise InputError(
                f"{protocol.id} needs one class per image, and the {split} split of {protocol.dataset} has several: "
                "choose a protocol of the SVM"
            )
        if not len(labels):
            raise InputError(f"{protocol.id}: the {split} split of {protocol.dataset} has no images: fill it")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise InputError(
            f"{protocol.id}: {protocol.train_split} and {protocol.test_split} of {protocol.dataset} differ in their "
            f"classes ({', '.join(odd[:5])}): make them the same"
        )
