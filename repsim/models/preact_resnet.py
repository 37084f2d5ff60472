"""Pre-activation residual networks for small images (He et al. 2016b, arXiv 1603.05027).

Batch norm and ReLU stand before each convolution, so the path along the shortcuts is linear and
the last block is followed by one more batch norm and ReLU. A 3×3 stem without pooling, and
parameter names (conv1, layer1.0.bn1, ..., bn, linear) as in the public CIFAR implementations.
"""

from __future__ import annotations

from torch import Tensor, nn

from repsim.models.resnet import conv3x3


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(width, width)
        self.shortcut = None
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, width, h/stride, w/stride)."""
        active = self.relu1(self.bn1(x))
        # A projection starts from the activated input, an identity from the raw one.
        skip = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + skip


class PreActResNet(nn.Module):
    """Stem, four stages of pre-activation blocks, batch norm, pooling, linear head.

    Args:
        depths: number of blocks of each of the four stages of 64, 128, 256 and 512 channels.
        classes: outputs of the linear head.
        channels: image channels.
    """

    def __init__(self, depths: tuple[int, int, int, int], *, classes: int, channels: int) -> None:
        super().__init__()
        inputs = 64
        self.conv1 = conv3x3(channels, inputs)
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            stage: list[nn.Module] = []
            for j in range(depth):
                stage.append(PreActBlock(inputs, width, stride=2 if i > 0 and j == 0 else 1))
                inputs = width
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, h, w)."""
        x = self.conv1(x)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
        return self.linear(self.avgpool(self.relu(self.bn(x))).flatten(1))


def preact_resnet18(*, classes: int, channels: int = 3, image_size: int = 32) -> PreActResNet:
    """Two blocks a stage; any image size. See `PreActResNet`."""
    return PreActResNet((2, 2, 2, 2), classes=classes, channels=channels)
