"""The renaming of detectron2's tools/convert-torchvision-to-d2.py, which is MoCo's too, as a chain of replacements."""

from __future__ import annotations


def renamed(name: str) -> str:
    if "layer" not in name:
        name = "stem." + name
    for stage in (4, 3, 2, 1):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for number in (1, 2, 3):
        name = name.replace(f"bn{number}", f"conv{number}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
