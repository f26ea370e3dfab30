"""The kNN protocols: every number with its source."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from results.schema import Geometry, Protocol, Source


class KnnParams(BaseModel):
    """What `Protocol.params` holds for kNN.

    Attributes:
        k: neighbour counts, each a column; all come from one search.
        temperature: T of a neighbour's weight exp(similarity / T).
        normalise: rows are divided by their L2 norm, so that the similarity is the cosine; else it is the dot product.
        features: the encoder output that is compared.
        top: a hit at 5 is the true class among the five classes with the most votes.
        exclude_self: a query that is itself in the gallery is not its own neighbour.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: tuple[int, ...] = Field(min_length=1)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    normalise: bool
    features: str
    top: tuple[int, ...] = Field(min_length=1)
    exclude_self: bool

    @field_validator("k", "top")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) < len(value):
            raise ValueError(f"{value} must be positive and without repeats")
        return tuple(sorted(value))


def column(k: int, top: int) -> str:
    """The table column of `k` neighbours: `k=20` for top-1, `k=20 top-5` beyond."""
    return f"k={k}" if top == 1 else f"k={k} top-{top}"


def columns(protocol: Protocol) -> tuple[str, ...]:
    """Those that the protocol's `params` give, which an override may have changed."""
    params = KnnParams.model_validate(protocol.params)
    return tuple(column(k, top) for top in params.top for k in params.k)


def _protocol(
    variant: str, params: KnnParams, *, source: Source, primary: str, dataset: str, test_split: str, geometry: Geometry
) -> Protocol:
    return Protocol(
        benchmark="knn",
        variant=variant,
        harness="knn",
        dataset=dataset,
        train_split="train",
        test_split=test_split,
        geometry=geometry,
        columns=tuple(column(k, top) for top in params.top for k in params.k),
        primary=primary,
        metric="accuracy",
        selection="fixed k",
        params=params.model_dump(),
        source=source,
    )


_SHORTER_256 = Geometry(mode="shorter", resize=256, crop=224)
_FOUR_K = (10, 20, 100, 200)
_POOLED = KnnParams(k=_FOUR_K, temperature=0.07, normalise=True, features="embed", top=(1, 5), exclude_self=True)

MMSELFSUP = _protocol(
    "mmselfsup",
    _POOLED,  # --num-knn 10 20 100 200, --temperature 0.07; normalised inside the classifier
    dataset="imagenet",
    test_split="val",
    geometry=_SHORTER_256,
    primary="k=20",
    source=Source(
        repository="open-mmlab/mmselfsup",
        revision="0.x@6faad81",
        note="tools/benchmarks/classification/knn_imagenet/test_knn.py, mmselfsup/models/utils/knn_classifier.py: "
        "features of the last stage after global average pooling",
    ),
)

DINO = _protocol(
    "dino",
    _POOLED,  # --nb_knn 10 20 100 200, --temperature 0.07
    dataset="imagenet",
    test_split="val",
    geometry=_SHORTER_256.model_copy(update={"interpolation": "bicubic"}),  # Resize(256, interpolation=3)
    primary="k=20",
    source=Source(
        repository="facebookresearch/dino",
        revision="7c446df",
        note="eval_knn.py: backbone output with fc removed",
    ),
)

LEMNISCATE = _protocol(
    "lemniscate",
    KnnParams(k=(200,), temperature=0.07, normalise=True, features="head", top=(1, 5), exclude_self=True),
    dataset="imagenet",
    test_split="val",
    geometry=_SHORTER_256,
    primary="k=200",
    source=Source(
        repository="zhirongw/lemniscate.pytorch",
        revision="f7cfe29",
        note="test.py kNN with recompute_memory: 128-d normalised head, K 200, sigma 0.07 on ImageNet. Its default "
        "compares with the memory bank of training, which a checkpoint does not hold",
    ),
)

VISSL = _protocol(
    "vissl",
    KnnParams(k=(200,), temperature=0.1, normalise=False, features="head", top=(1, 5), exclude_self=True),
    dataset="imagenet",
    test_split="val",
    geometry=_SHORTER_256,
    primary="k=200",
    source=Source(
        repository="facebookresearch/vissl",
        revision="09270ed",
        note="vissl/config/defaults.yaml NEAREST_NEIGHBOR: TOPK 200, SIGMA 0.1, L2_NORM_FEATS False; the shipped "
        "configuration compares 128-d outputs of the MLP head",
    ),
)

CIFAR_NOTEBOOK = _protocol(
    "cifar_notebook",
    KnnParams(k=(200,), temperature=0.1, normalise=True, features="head", top=(1,), exclude_self=True),
    dataset="cifar10",
    test_split="test",
    geometry=Geometry(mode="shorter", resize=32, crop=32),  # the pictures as they are: 32 x 32
    primary="k=200",
    source=Source(
        repository="facebookresearch/moco",
        revision="colab-notebook",
        note="colab/moco_cifar10_demo.ipynb: --knn-k 200, --knn-t 0.1, 128-d normalised head",
    ),
)

DEMO = _protocol(
    "demo",
    _POOLED,
    dataset="drawings",
    test_split="val",
    geometry=Geometry(mode="shorter", resize=48, crop=48),  # uncropped: a drawing may lie anywhere in its picture
    primary="k=20",
    source=Source(repository="this project", note="knn.mmselfsup@1 on the embedded single drawings"),
)

IMAGEFOLDER = _protocol(
    "imagefolder",
    _POOLED,
    dataset="imagefolder",
    test_split="val",
    geometry=_SHORTER_256,
    primary="k=20",
    source=Source(repository="this project", note="knn.mmselfsup@1 on any ImageFolder; k may not exceed its gallery"),
)

PROTOCOLS: tuple[Protocol, ...] = (MMSELFSUP, DINO, LEMNISCATE, VISSL, CIFAR_NOTEBOOK, DEMO, IMAGEFOLDER)
