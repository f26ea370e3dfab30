"""What is wanted of an encoder, and where in the store it lies: addressed by everything that could change a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from benchmarks.contract import Labels
from benchmarks.datasets.lists import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.features.extract import Outputs
from benchmarks.features.pool import Pooling
from benchmarks.options import Precision
from results.schema import Geometry, canonical_sha256

# Raised by hand when extraction itself changes a number; tests/benchmarks/features holds golden vectors against it.
FEATURES_VERSION = 2


@dataclass(frozen=True)
class Wanted:
    """Outputs of one encoder on one split.

    Attributes:
        outputs: key -> (encoder output, pooling of its maps or None for a vector).
        about: of the split, for people: a data set and its part.
    """

    encoder: Encoder
    labels: Labels
    geometry: Geometry
    outputs: Outputs
    precision: Precision = "fp32"
    about: str = ""

    @cached_property
    def description(self) -> dict[str, object]:
        """Everything that could change a number. The encoder's name could not, and is not part of it.

        Nor are the device, the libraries, the threads of a process and the images at a time: they may order the sums
        of the same float32 arithmetic otherwise. With all four the same, features are the same bit for bit.
        """
        card = self.encoder.card
        head = {} if card.head is None else {"head": card.head}  # the weights' hash is the backbone's alone
        return head | {
            "version": FEATURES_VERSION,
            "weights": card.weights_sha256,
            "architecture": card.architecture.model_dump(mode="json"),
            "input": [card.mean, card.std, card.value_range, card.channels],
            "embed": card.embed,
            "images": fingerprint(self.labels),
            "geometry": self.geometry.model_dump(mode="json"),
            "precision": self.precision,
        }

    @cached_property
    def address(self) -> str:
        """Name of the folder."""
        return canonical_sha256(self.description)[:24]

    @property
    def files(self) -> dict[str, tuple[str, Pooling | None]]:
        """File name without suffix -> output, as in `outputs`: the same output under two keys is one file."""
        return {file_key(*output): output for output in self.outputs.values()}

    def with_outputs(self, outputs: Outputs) -> Wanted:
        """The same with other outputs, at the same address, without looking at the images again."""
        other = replace(self, outputs=outputs)
        other.__dict__.update(description=self.description, address=self.address)
        return other


def file_key(output: str, pooling: Pooling | None) -> str:
    """Name of an output's file, without suffix."""
    return output if pooling is None else f"{output}-{canonical_sha256(pooling.model_dump(mode='json'))[:8]}"
