"""The README's table and picture are what the code and the committed records give, and its links lead somewhere."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.registry import TASK_NAMES
from tests.docs.test_docs_tables import room

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
REMAKE = "run `python scripts/docs_pages/outputs.py README.md`"


@pytest.fixture(scope="module")
def outputs() -> ModuleType:
    return room("outputs")


def test_the_table_names_every_benchmark(outputs: ModuleType) -> None:
    assert outputs.with_readme_tables(TEXT) == TEXT, REMAKE
    assert all(f"| `{name}` |" in TEXT for name in (*TASK_NAMES, "all", "frozen", "probes", "dense"))


def test_a_cost_follows_from_the_protocol_and_the_records() -> None:
    passes = 1_281_167 + 50_000  # of kNN: each image of train and val once
    rates = f"{passes / 1000 / 60:.2g} min | {passes / 160 / 3600:.2g} h"
    assert f"| `knn` | `knn.mmselfsup@1` | 1.33 M | {rates} |" in TEXT
    trained = (
        20_000 * 16 * 3 * (512 / 224) ** 2
    )  # of segmentation: iterations, batch, and three passes a step at 512 pixels
    evaluated = 1_449 * (512 / 224) ** 2
    assert f"| `voc-seg` | `voc12aug_fcn.mmselfsup@1` | {(trained + evaluated) / 1e6:.3g} M |" in TEXT
    assert "| `linear` | `linear_avgpool.moco@1` | 128 M |" in TEXT  # 100 epochs of 1,281,167
    assert "unknown" not in TEXT.partition("<!-- costs:begin -->")[2].partition("<!-- costs:end -->")[0]


def test_a_protocol_for_a_vit_is_counted_with_the_operations_of_one() -> None:
    from torchvision.models import ResNet50_Weights, ViT_B_16_Weights

    ratio = ViT_B_16_Weights.IMAGENET1K_V1.meta["_ops"] / ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]
    trained, evaluated = 184_375 * 64 * 3, 5_000  # of ViTDet: iterations, batch, three passes a step; COCO val
    days = ratio * (trained + evaluated) * (1024 / 224) ** 2 / 1000 / 86_400
    assert re.search(rf"`coco_vitdet.base_100ep@1` \| 740 M \| {days:.2g} days \|", TEXT)


def test_the_picture_shows_the_records(outputs: ModuleType, tmp_path: Path) -> None:
    outputs.readme_picture(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        drawn, committed = (one.read_text() for one in (path, ROOT / "docs" / "pictures" / path.name))
        if f"Matplotlib v{version('matplotlib')}," in committed:
            assert drawn == committed, REMAKE
        else:  # another release moves points by fractions
            counts = [[text.count(tag) for tag in ("<path", "<use", "<g ")] for text in (drawn, committed)]
            assert counts[0] == counts[1], REMAKE
        assert f"docs/pictures/{path.name}" in TEXT
    for number in ("46.39", "32.41", "12.26", "0.90", "0.82"):
        assert number in TEXT  # in the text for those who cannot see it


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert path.startswith("http") or not path or (ROOT / path).exists(), target
        assert path or anchor in headings, target
