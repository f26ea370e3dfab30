"""The nouns that every package shares: architecture, encoder card, protocol, record. No torch, no I/O.

All are frozen pydantic models that refuse unknown fields, so a misspelt field is an error and not a silent default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from results.errors import InputError, did_you_mean

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


def _omitted_at(default: Any, **more: Any) -> Any:
    """A field that is left out of the JSON at its default, so that older records and features keep their hashes."""
    return Field(default, exclude_if=lambda value: value == default, **more)


class Architecture(Frozen):
    """What must be known to build the network; the part of it that a checkpoint's keys cannot show included.

    `name` is a key of `pretrain.resnet.STAGES`, `timm:<model>`, `module:<package.module:function>` or `pixels`.
    The other fields describe a ResNet and keep their defaults elsewhere.
    """

    name: str
    width: int = Field(64, gt=0, description="channels of the stem and of the first stage's 3x3 convolutions")
    stem_kernel: int = 7
    stem_stride: int = 2
    max_pool: bool = True
    stem_padding: int | None = _omitted_at(None, description="half the kernel where it is None")
    stride_in_1x1: bool = _omitted_at(False, description="of a bottleneck, not in its 3x3")
    bn_eps: float = _omitted_at(1e-5)
    num_heads: int | None = _omitted_at(None, description="of a ViT; timm's for the model where None")
    # At other image sizes: offset as in DINO's code, bilinear as in PE's, square as in RADIO's. bfloat16: rotary
    # periods as in DINOv3's files.
    positions: Literal["offset", "bfloat16", "bilinear", "square"] | None = _omitted_at(
        None, description="of a ViT; as in timm where None"
    )
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] | None = _omitted_at(
        None, description="of a ViT; timm's for the model where None"
    )
    norm_eps: float | None = _omitted_at(None, gt=0, description="of a ViT's layer norms")
    pooling: Literal["cls", "mean", "cls+mean", "mean6"] | None = _omitted_at(
        None, description="tokens that make embed; timm's for the model where None"
    )


LONGEST_NAME = 500  # characters of an encoder's name: pictures and pages show it whole


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
        patch_size: of a ViT: image sizes must be multiples of it.
        input_size: the only image size that the encoder takes, where it takes one only.
        head: how the projection is formed, with the first digits of its weights' hash, where the file has one.
        interpolation: how its library resizes images. For the reader alone: the protocol owns the geometry.
        assumed: names of the fields above that nothing in the file or a known release confirms.
        not_shown: in words, how networks of the same keys and shapes may differ from this one, where nothing rules them
            out.
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
    head: str | None = _omitted_at(None)
    patch_size: int | None = _omitted_at(None)
    input_size: int | None = _omitted_at(None)
    interpolation: str | None = _omitted_at(None)
    method: str | None = None
    epochs: float | None = None
    pretrain_data: str | None = None
    pretrain_seconds: float | None = None
    init: str | None = None
    licence: str | None = None
    published_as: str | None = None
    assumed: tuple[str, ...] = ()
    not_shown: tuple[str, ...] = _omitted_at(())


class Source(Frozen):
    """Where a protocol's numbers were read."""

    repository: str
    revision: str = ""
    note: str = ""


class Geometry(Frozen):
    """The deterministic transform before normalisation. The card owns mean, std, range and channel order.

    `border` pixels are cut off every side of the image. Then `shorter` resizes the shorter side to `resize`, and takes
    the centre `crop` squared; `warp` resizes the shorter side to `resize` (0 skips that) and then both sides to `crop`,
    whatever the aspect (VOC07 SVM).

    `decoder` is what reads JPEG files; anything else than Pillow is a marked variant of a protocol. `pil-draft` lets
    Pillow decode at a half, a quarter or an eighth of the size where that is no smaller than `resize`; `simplejpeg` is
    libjpeg-turbo at full size, and `simplejpeg-scaled` at the nearest larger eighth; `nvjpeg` decodes, resizes and
    crops on a CUDA device.
    """

    mode: Literal["shorter", "warp"]
    resize: int = Field(ge=0)
    crop: int = Field(ge=1)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    border: int = _omitted_at(0, ge=0)
    decoder: Literal["pil", "pil-draft", "simplejpeg", "simplejpeg-scaled", "nvjpeg"] = _omitted_at("pil")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.decoder == "nvjpeg" and self.interpolation == "lanczos":
            raise ValueError("nvjpeg resizes bilinearly or bicubically: choose another decoder or interpolation")
        return self


def _ascending(counts: tuple[int, ...]) -> tuple[int, ...]:
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"{counts} must be positive and without repeats")
    return tuple(sorted(counts))


Counts = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_ascending)]
"""positive whole numbers without repeats, in ascending order; one column each"""


class Params(Frozen):
    """Base of a benchmark's typed `Protocol.params`.

    A subclass declares one field per number and overrides the three methods where the answer follows from the fields.
    """

    unlabelled: ClassVar[frozenset[str]] = frozenset()
    """Fields that identify an input file: a task sets them, not the user, and the protocol's id leaves them out."""

    def columns(self) -> tuple[str, ...] | None:
        """The table columns that follow from these values; None where the protocol declares them."""
        return None

    def selection(self) -> str | None:
        """How the scores are chosen under these values; None where the protocol declares it."""
        return None

    def metric(self) -> str | None:
        """What the scores are under these values; None where the protocol declares it."""
        return None

    def following(self, after: Self) -> dict[str, Any]:
        """Values that follow where these become `after`, as the drops of a rate follow the number of epochs."""
        return {}

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, validated.

        Raises:
            ValidationError: an unknown name, or a value that cannot be.
        """
        return self.model_validate({**self.model_dump(), **changes})


class Protocol(Frozen):
    """Every number that can move a result, with its source. `params` belongs to the benchmark, which types it.

    `revision` rises only when our definition was wrong. A change by the user shows in `id` (see `changed`).
    `test_geometry` is the transform of the test images where it is not that of the training images.
    """

    benchmark: str
    variant: str
    revision: int = 1
    harness: str
    dataset: str
    train_split: str
    test_split: str
    geometry: Geometry
    test_geometry: Geometry | None = _omitted_at(None)
    columns: tuple[str, ...]
    primary: str
    metric: str
    unit: Literal["%", "1"] = "%"
    higher_is_better: bool = True
    selection: str
    params: dict[str, Any] = Field(default_factory=dict)
    source: Source
    overrides: tuple[str, ...] = ()
    _params_type: type[Params] | None = PrivateAttr(None)

    @classmethod
    def of(cls, params: Params, **fields: Any) -> Self:
        """Declare a protocol of typed `params`. Columns, selection and metric come from them unless `fields` say so.

        Args:
            fields: the other fields; `params` are stored as `params.model_dump()`.
        """
        derived = {"columns": params.columns(), "selection": params.selection(), "metric": params.metric()}
        known = {name: value for name, value in derived.items() if value is not None}
        protocol = cls.model_validate({**known, **fields, "params": params.model_dump()})
        protocol._params_type = type(params)
        return protocol

    @model_validator(mode="after")
    def _primary_is_a_column(self) -> Self:
        if self.primary not in self.columns:
            raise ValueError(f"primary column {self.primary!r} is not among {self.columns}")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protocol) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # params are a dict

    @property
    def id(self) -> str:
        """As `knn.mmselfsup@1`; changed fields follow as `+epochs=10`."""
        return f"{self.benchmark}.{self.variant}@{self.revision}" + "".join(f"+{o}" for o in self.overrides)

    @property
    def params_type(self) -> type[Params]:
        """The model that types `params`.

        Raises:
            TypeError: the protocol was read from a record, which does not say; look it up by its id.
        """
        if self._params_type is None:
            raise TypeError(f"{self.id} was read from a record and cannot be changed; look it up by its id")
        return self._params_type

    @property
    def settable(self) -> tuple[str, ...]:
        """Names of `params` that `changed` takes: those stated, and those left out at a default value."""
        fields = self.params_type.model_fields
        unstated = (name for name, field in fields.items() if field.exclude_if is not None and field.default)
        return tuple(sorted({*self.params, *unstated}))

    def changed(
        self,
        *,
        dataset: str | None = None,
        train_split: str | None = None,
        test_split: str | None = None,
        geometry: Mapping[str, Any] | None = None,
        label: str | None = None,
        **params: Any,
    ) -> Self:
        """A protocol with some fields changed and an id that says so: the only way to derive one.

        Values are validated by the benchmark's params model; columns, selection, metric and other `params` follow (see
        `Params.following`). A value that equals the present one changes nothing.

        Args:
            dataset: another data set, labelled `dataset=`.
            train_split, test_split: other splits, labelled by their field.
            geometry: fields of the geometry by name, labelled `geometry.crop=` and so on.
            label: one more label for the id, such as `unreadable=3`, for what is no field of the protocol.
            params: fields of `params` by name.

        Raises:
            InputError: a name that the protocol does not have, or a value that cannot be.
        """
        labels = {each.partition("=")[0]: each for each in self.overrides}
        fields: dict[str, Any] = {}
        for name, value in (("dataset", dataset), ("train_split", train_split), ("test_split", test_split)):
            if value is not None and value != getattr(self, name):
                fields[name] = value
                labels[name] = f"{name}={value}"
        if geometry:
            shape = self._changed_geometry(geometry)
            for name in geometry:
                if getattr(shape, name) != getattr(self.geometry, name):
                    fields["geometry"] = shape
                    labels[f"geometry.{name}"] = f"geometry.{name}={getattr(shape, name)}"
            if self.test_geometry is not None:  # follows in what both have in common
                before, of_test = self.geometry, self.test_geometry
                common = {n: getattr(shape, n) for n in geometry if getattr(of_test, n) == getattr(before, n)}
                fields["test_geometry"] = of_test.model_copy(update=common)
        if params:
            fields |= self._changed_params(params, labels)
        if label is not None:
            labels[label.partition("=")[0]] = label
        copy = self.model_copy(update={**fields, "overrides": tuple(sorted(labels.values()))})
        copy._params_type = self._params_type
        return copy

    def _changed_params(self, changes: Mapping[str, Any], labels: dict[str, str]) -> dict[str, Any]:
        """The protocol's fields after a change of `params`; adds what changed to `labels`."""
        kind = self.params_type
        for name in changes:
            unstated = name in kind.model_fields and kind.model_fields[name].exclude_if is not None
            if name not in self.settable and name not in kind.unlabelled and not unstated:
                raise InputError(
                    f"{self.id} has no setting {name!r}{did_you_mean(name, self.settable)}\n"
                    f"settings: {', '.join(self.settable) or 'none'}"
                )
        try:
            typed = kind.model_validate({**self.params, **changes})
            following = kind.model_validate(self.params).following(typed)
            changes = {**following, **changes}
            typed = kind.model_validate({**self.params, **changes})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            given = f"{name}={changes[name]!r}" if name in changes else ", ".join(changes)
            raise InputError(f"{self.id} cannot have {given}: {first['msg'].removeprefix('Value error, ')}") from error
        dumped = typed.model_dump()
        before = {name: self.params.get(name, kind.model_fields[name].default) for name in changes}
        moved = {
            name: getattr(typed, name)
            for name in sorted(changes)
            if dumped.get(name, getattr(typed, name)) != before[name]
        }
        labels |= {
            name: f"{name}={_short(dumped.get(name, value))}"
            for name, value in moved.items()
            if name not in kind.unlabelled
        }
        if not moved:
            return {}
        stated = {**self.params, **{name: dumped.get(name) for name in moved}}
        fields: dict[str, Any] = {"params": {name: value for name, value in stated.items() if name in dumped}}
        for name, value in (("selection", typed.selection()), ("metric", typed.metric())):
            if value is not None:
                fields[name] = value
        columns = typed.columns()
        if columns is not None:
            fields["columns"] = columns
            fields["primary"] = self.primary if self.primary in columns else columns[0]
        return fields

    def _changed_geometry(self, changes: Mapping[str, Any]) -> Geometry:
        known = tuple(Geometry.model_fields)
        for name in changes:
            if name not in known:
                raise InputError(
                    f"{self.id} has no setting 'geometry.{name}'{did_you_mean(name, known)}\n"
                    f"settings: {', '.join(f'geometry.{each}' for each in known)}"
                )
        try:
            return Geometry.model_validate({**self.geometry.model_dump(), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise InputError(f"{self.id} cannot have geometry.{name}={changes.get(name)!r}: {first['msg']}") from error


LONGEST_LABEL = 48  # characters of a value in an id, which tables print and files are named after


def _short(value: Any) -> str:
    """A value as an id shows it: whole, or its first characters and the first digits of its hash."""
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


OWN_DATA_ID = "imagefolder"  # the data set id of any image folder


class DatasetRef(Frozen):
    """Which data, and a hash of the lists and labels that were read.

    Attributes:
        official: whether the lists are those of the owner of the data set; None where nobody has checked.
        folder: name of the folder that was read, without its path, where the data are not official.
    """

    id: str
    fingerprint: Sha256
    embedded: bool = Field(description="composed from the project's own drawings: never in a table with full data sets")
    train_items: int
    test_items: int
    official: bool | None = _omitted_at(None)
    folder: str | None = _omitted_at(None)

    @property
    def own(self) -> bool:
        """Whether these are the user's own data, which never stand under the name of a published data set."""
        return not self.embedded and (self.official is False or (self.official is None and self.id == OWN_DATA_ID))

    @property
    def own_name(self) -> str:
        """Name of the user's own data: the folder, and the data set whose layout it has."""
        if not self.folder:
            return self.id
        return self.folder if self.id == OWN_DATA_ID else f"{self.folder} in the layout of {self.id}"

    @property
    def shown_name(self) -> str:
        """Name of the data in tables: the data set, or the user's folder with the first digits of its fingerprint."""
        return f"{self.own_name} ({self.fingerprint[:8]})" if self.own else self.id


class Hardware(Frozen):
    """What a number's cost depends on; no host name, no path."""

    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None = None
    float32: Literal["ieee", "tf32"] | None = _omitted_at(
        None, description="what float32 was on the GPU: TF32 rounds factors to 10 bits"
    )


class Record(Frozen):
    """One encoder on one data set under one protocol.

    `runs` holds trials, grid cells, layers and heads, each a flat mapping. `outcomes_file` names the file with
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
    parameters: int | None = _omitted_at(None, description="of the network whose outputs were measured")
    hardware: Hardware
    created: str
    outcomes_file: str | None = None
    sha256: Sha256 = ""

    def value(self, column: str) -> float | None:
        """The number in a column; None where there is none."""
        return self.scores[column].value if column in self.scores else None

    def trials(self, column: str) -> list[float]:
        """A column's number in each run with the key `trial`; one with the key `drawn` is of a drawn set of labels."""
        values = (run[column] for run in self.runs if "trial" in run and column in run and "drawn" not in run)
        return [float(value) for value in values if isinstance(value, int | float)]

    @property
    def filled_scores(self) -> dict[str, Score]:
        """The columns that have a number."""
        return {column: score for column, score in self.scores.items() if score.value is not None}

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
