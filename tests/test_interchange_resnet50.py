"""A resnet50 as published matrices have it: which of its modules repeat another's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.interchange import torch_cka_values


class Bottleneck(nn.Module):
    """The shortcut is a Sequential, an empty one where nothing is to be done."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
        out += self.shortcut(x)
        return out.relu()


class ResNet50(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, blocks in enumerate((3, 4, 6, 3)):
            made = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                made.append(Bottleneck(inputs, width * 2**stage, stride))
                inputs = 4 * width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.avgpool(x).flatten(1)


class Wrapped(nn.Module):
    """As published networks of this kind are: an encoder in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ResNet50(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def test_22_rows_repeat_another() -> None:
    torch.manual_seed(0)
    network = Wrapped().eval()
    images = torch.rand(24, 3, 1, 1) + 0.3 * torch.rand(24, 3, 16, 16)
    result = torch_cka_values(network, network, [images]).result
    assert result.sizes["x"] == 145  # and 147 with a linear head and what normalises its output
    named = zip(result["x_layer"].values, result["x_duplicate_of"].values, strict=True)
    found = {str(name) for name, first in named if first}
    stages = {1: 3, 2: 4, 3: 6, 4: 3}
    block = "features.layer{}.{}"
    expected = {f"features.layer{stage}" for stage in stages}  # their last blocks
    expected |= {block.format(stage, 0) + ".shortcut" for stage in stages}  # their batch norms
    expected |= {  # empty: the block's input
        block.format(stage, i) + ".shortcut" for stage, n in stages.items() for i in range(1, n)
    }
    expected |= {"features", "(network)"}  # the pooled features
    assert len(expected) == 22
    assert found == expected
