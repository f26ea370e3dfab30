import torch
from torch import nn

from benchmarks.training.networks import safe_memory_format


def test_only_a_narrow_strided_shortcut_on_a_cpu_gives_up_channels_last() -> None:
    cpu, narrow = torch.device("cpu"), nn.Conv2d(8, 16, 1, stride=2)
    assert safe_memory_format(narrow, cpu) == torch.contiguous_format
    assert safe_memory_format(nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, groups=4)), cpu) == torch.contiguous_format
    assert safe_memory_format(narrow, torch.device("cuda")) == torch.channels_last
    for fine in (nn.Conv2d(16, 32, 1, stride=2), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, stride=2)):
        assert safe_memory_format(fine, cpu) == torch.channels_last
