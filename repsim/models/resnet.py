"""Residual networks for small images (He et al. 2016, arXiv 1512.03385).

Two families with parameter names conv1, bn1, layer1.0.conv1, ..., linear, so that public CIFAR
weights load:

- resnet8/20/32/44/56: section 4.2 of the paper, three stages of 16, 32 and 64 channels, identity
  shortcuts without parameters. resnet20-s2 has a stride-2 stem: the same parameters, a quarter
  of the work.
- resnet18/34/50: the ImageNet networks with a 3×3 stem without pooling, as is usual on CIFAR.

ReLU and pooling are modules: the stem's output (`relu`) and the pooled features (`avgpool`) then
have names like every other layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Subsample(nn.Module):
    """Shortcut without parameters: every second pixel, new channels zero ("option A")."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c, h, w) -> (batch, c + extra, h/2, w/2)."""
        before = self.extra_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra_channels - before))


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, parameter_free: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride, parameter_free)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, width, h/stride, w/stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(
            self.bn2(self.conv2(out)) + (x if self.shortcut is None else self.shortcut(x))
        )


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; four times as wide at the end."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, parameter_free: bool) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride, parameter_free)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, 4 width, h/stride, w/stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu3(
            self.bn3(self.conv3(out)) + (x if self.shortcut is None else self.shortcut(x))
        )


def shortcut(inputs: int, outputs: int, stride: int, parameter_free: bool) -> nn.Module | None:
    """None where the shape stays; else subsampling ("A") or a 1×1 projection ("B").

    An identity module in place of None would be a layer that repeats the block's input.
    """
    if stride == 1 and inputs == outputs:
        return None
    if parameter_free:
        return Subsample(outputs - inputs)
    projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, linear head.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: number of blocks of each stage.
        widths: channels of each stage; every stage but the first halves the image.
        classes: outputs of the linear head.
        channels: image channels.
        stem_stride: 2 halves the image before the first stage.
        parameter_free: shortcuts without parameters.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        classes: int,
        channels: int,
        stem_stride: int = 1,
        parameter_free: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, widths[0], stem_stride)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        inputs = widths[0]
        self.stages = [f"layer{i + 1}" for i in range(len(depths))]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(inputs, width, stride, parameter_free))
                inputs = width * block.expansion
            self.add_module(self.stages[i], nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, h, w)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(self.avgpool(x).flatten(1))


def _cifar_resnet(
    depth: int,
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    stem_stride: int = 1,
) -> ResNet:
    blocks = (depth - 2) // 6
    return ResNet(
        BasicBlock,
        (blocks,) * 3,
        (16, 32, 64),
        classes=classes,
        channels=channels,
        stem_stride=stem_stride,
        parameter_free=True,
    )


def _imagenet_resnet(
    block: type[Any],
    depths: tuple[int, ...],
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
) -> ResNet:
    return ResNet(block, depths, (64, 128, 256, 512), classes=classes, channels=channels)


resnet8 = partial(_cifar_resnet, 8)
resnet20 = partial(_cifar_resnet, 20)
resnet20_s2 = partial(_cifar_resnet, 20, stem_stride=2)
resnet32 = partial(_cifar_resnet, 32)
resnet44 = partial(_cifar_resnet, 44)
resnet56 = partial(_cifar_resnet, 56)
resnet18 = partial(_imagenet_resnet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(_imagenet_resnet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(_imagenet_resnet, Bottleneck, (3, 4, 6, 3))
