"""The nouns that every package shares: architecture, encoder card, protocol, record. No torch, no I/O.

All are frozen pydantic models that refuse unknown fields, so a misspelt field is an error and not a silent default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2  # 2: the key leaves out what only describes an encoder

Sha256 = str
Triple = tuple[float, float, float]


class Frozen(BaseModel):
    """A value: immutable, strict about its fields, hashed by content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def content_sha256(self, *, exclude: set[str] | None = None) -> Sha256:
        """SHA-256 of the canonical JSON (sorted keys, no white space)."""
        return canonical_sha256(self.model_dump(mode="json", exclude=exclude))


def canonical_sha256(value: Any) -> Sha256:
    """SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_none(value: object) -> bool:
    return value is None


def _is_false(value: object) -> bool:
    return value is False


def _is_torch_eps(value: object) -> bool:
    return value == 1e-5


class Architecture(Frozen):
    """What must be known to build the network; the part of it that a checkpoint's keys cannot show included.

    `name` is a key of `pretrain.backbone.STAGES`, `timm:<model>`, `module:<package.module:function>` or `pixels`.
    The other fields describe a ResNet and keep their defaults elsewhere.
    """

    name: str
    width: int = Field(64, gt=0, description="channels of the stem and of the first stage's 3x3 convolutions")
    stem_kernel: int = 7
    stem_stride: int = 2
    max_pool: bool = True
    # Left out of the JSON where they are as they always were, so that older records and features keep their hashes.
    stem_padding: int | None = Field(None, exclude_if=_is_none, description="half the kernel where it is None")
    stride_in_1x1: bool = Field(False, exclude_if=_is_false, description="of a bottleneck, not in its 3x3")
    bn_eps: float = Field(1e-5, exclude_if=_is_torch_eps)
    num_heads: int | None = Field(None, exclude_if=_is_none, description="of a ViT; timm's for the model where None")


class EncoderCard(Frozen):
    """What an encoder is and how its input must look.

    Attributes:
        name: how tables call it.
        source: where the weights came from, for a reader: a recipe, a package with its version, "random".
        weights_sha256: over sorted name, dtype, shape and bytes of the canonical backbone, so that it is the same in
            every file layout. None only in a card that has not met its weights yet.
        layout: the checkpoint layout that was recognised.
        keys_matched, keys_unused: backbone tensors filled, and other tensors in the file (heads, queue, optimiser).
        mean, std: per channel in the order of `channels`, in units of `value_range`.
        value_range: pixel value of white: 1.0 or 255.0.
        embed: how the one vector per image is formed.
        head: how the projection is formed, with the first digits of its weights' hash, where the file has one.
        interpolation: how its library resizes images. For the reader alone: the protocol owns the geometry.
        assumed: names of the fields above that nothing in the file or a known release confirms.
        published_as: the `model` of `results/published.csv` that this encoder is, where it is one.
    """

    name: str
    source: str
    architecture: Architecture
    weights_sha256: Sha256 | None = None
    layout: str = "none"
    keys_matched: int = 0
    keys_unused: int = 0
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    value_range: float = 1.0
    channels: Literal["RGB", "BGR"] = "RGB"
    embed: str = "global average of the last stage"
    head: str | None = Field(None, exclude_if=_is_none)
    interpolation: str | None = Field(None, exclude_if=_is_none)
    method: str | None = None
    epochs: float | None = None
    pretrain_data: str | None = None
    pretrain_seconds: float | None = None
    init: str | None = None
    licence: str | None = None
    published_as: str | None = None
    assumed: tuple[str, ...] = ()


class Source(Frozen):
    """Where a protocol's numbers were read."""

    repository: str
    revision: str = ""
    note: str = ""


class Geometry(Frozen):
    """The deterministic transform before normalisation. The card owns mean, std, range and channel order.

    `shorter` resizes the shorter side to `resize`, then takes the centre `crop` squared; `warp` resizes the shorter
    side to `resize` (0 skips that) and then both sides to `crop`, whatever the aspect (VOC07 SVM).
    """

    mode: Literal["shorter", "warp"]
    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Protocol(Frozen):
    """Every number that can move a result, with its source. `params` belongs to the harness, which types it.

    `revision` rises only when our definition was wrong; an override by the user shows in `id` (see `with_overrides`).
    """

    benchmark: str
    variant: str
    revision: int = 1
    harness: str
    dataset: str
    train_split: str
    test_split: str
    geometry: Geometry
    columns: tuple[str, ...]
    primary: str
    metric: str
    unit: Literal["%", "1"] = "%"
    higher_is_better: bool = True
    selection: str
    params: dict[str, Any] = Field(default_factory=dict)
    source: Source
    overrides: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _primary_is_a_column(self) -> Self:
        if self.primary not in self.columns:
            raise ValueError(f"primary column {self.primary!r} is not among {self.columns}")
        return self

    @property
    def id(self) -> str:
        """As `knn.mmselfsup@1`; overridden fields follow as `+epochs=10`."""
        return f"{self.benchmark}.{self.variant}@{self.revision}" + "".join(f"+{o}" for o in self.overrides)

    def with_overrides(self, **changes: Any) -> Protocol:
        """A copy with some `params` replaced and the id saying so.

        Raises:
            KeyError: a name that the protocol does not have.
        """
        unknown = sorted(set(changes) - set(self.params))
        if unknown:
            raise KeyError(f"{self.id} has no {', '.join(unknown)}; it has {', '.join(sorted(self.params))}")
        changed = {k: v for k, v in sorted(changes.items()) if v != self.params[k]}
        kept = {label for label in self.overrides if label.partition("=")[0] not in changed}
        labels = {f"{k}={_short(v)}" for k, v in changed.items()}
        return self.model_copy(update={"params": {**self.params, **changed}, "overrides": tuple(sorted(kept | labels))})


LONGEST_LABEL = 48  # characters of a value in an id, which tables print and files are named after


def _short(value: Any) -> str:
    """A value as it stands in an id: whole, or how it begins and the first digits of its hash."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if len(text) <= LONGEST_LABEL:
        return text
    return f"{text[:32]}~{canonical_sha256(value)[:8]}"


class Score(Frozen):
    """One cell of a table.

    Attributes:
        value: in `unit`; None where the protocol gives no number for this encoder (a layer that it does not have).
        std: population standard deviation over `runs`, where there were several.
        standard_error: of the test sample, by the cluster bootstrap that the record's `outcomes` allow.
        n: test items behind the number.
        selection: how the number was chosen, as "last epoch", "best on test (oracle)".
    """

    value: float | None
    std: float | None = None
    standard_error: float | None = None
    n: int | None = None
    unit: Literal["%", "1"] = "%"
    selection: str


class ProtocolRef(Frozen):
    """The protocol as it was resolved for a record."""

    id: str
    sha256: Sha256
    resolved: Protocol


class DatasetRef(Frozen):
    """Which data, and a hash of the lists and labels that were read."""

    id: str
    fingerprint: Sha256
    embedded: bool = Field(description="composed from the project's own drawings: never in a table with full data sets")
    train_items: int
    test_items: int


class Hardware(Frozen):
    """What a number's cost depends on; no host name, no path."""

    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None = None


class Record(Frozen):
    """One encoder on one data set under one protocol.

    `runs` holds trials, grid cells, layers and heads, each a flat mapping. `outcomes_file` names the side file with
    per-item outcomes that paired comparisons rest on. `sha256` is over everything else in the record.
    """

    schema_version: int = SCHEMA_VERSION
    status: Literal["ok", "failed"]
    error: str | None = None
    encoder: EncoderCard
    protocol: ProtocolRef
    dataset: DatasetRef
    scores: dict[str, Score] = Field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = Field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...] = ()
    timing: dict[str, float] = Field(default_factory=dict)
    peak_memory_gib: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    hardware: Hardware
    created: str
    outcomes_file: str | None = None
    sha256: Sha256 = ""

    def sealed(self) -> Record:
        """A copy with its own hash filled in."""
        return self.model_copy(update={"sha256": self.content_sha256(exclude={"sha256"})})

    @property
    def intact(self) -> bool:
        """Whether the record still is what was written: an edit by hand changes its hash."""
        return self.sha256 == self.content_sha256(exclude={"sha256"})

    @property
    def key(self) -> str:
        """Eight hex digits that identify what was asked. The same key, no new run."""
        return record_key(self.protocol.resolved, self.encoder, self.dataset.fingerprint, self.seeds)


# Of an encoder's card, what can move a number. Its name, its history and how its file was laid out cannot, so the same
# weights under another name, or trained again, have the same key.
DECISIVE = ("weights_sha256", "architecture", "mean", "std", "value_range", "channels", "embed", "head")


def record_key(protocol: Protocol, card: EncoderCard, fingerprint: Sha256, seeds: tuple[int, ...]) -> str:
    """See `Record.key`: over protocol, the decisive fields of the card, data and seeds."""
    return asked_key(protocol.model_dump(mode="json"), card.model_dump(mode="json"), fingerprint, seeds)


def asked_key(protocol: Any, card: Mapping[str, Any], fingerprint: Sha256, seeds: Sequence[int]) -> str:
    """`record_key` of JSON as it stands in a file, which an older schema may have written with fewer fields."""
    decisive = {name: card[name] for name in DECISIVE if name in card}
    return canonical_sha256([protocol, decisive, fingerprint, list(seeds)])[:8]
