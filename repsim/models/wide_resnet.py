"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

Three stages of 16k, 32k and 64k channels of pre-activation blocks, k times as wide as a CIFAR
resnet; section 2 and table 1 of the paper. Parameter names (conv1, block1.layer.0.conv1, ..., bn1,
fc) are those that the published robust WRN checkpoints have had since TRADES, so that these load.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from repsim.errors import UserError
from repsim.models.resnet import conv3x3


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(width, width)
        same = inputs == width and stride == 1
        self.convShortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, width, h/stride, w/stride)."""
        active = self.relu1(self.bn1(x))
        # A projection starts from the activated input, an identity from the raw one.
        skip = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + skip


class WideResNet(nn.Module):
    """Stem, three stages of wide blocks, batch norm, global average pooling, linear head.

    Args:
        depth: number of convolutions on a path, 6n + 4.
        widen: how many times as wide as 16, 32, 64 channels.
        classes: outputs of the linear head.
        channels: image channels.

    Raises:
        UserError: the depth is not 6n + 4.
    """

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or widen < 1:
            raise UserError(
                f"a wide resnet expects a depth of 6n + 4 (10, 16, 22, 28, 34, 40) and widen of at "
                f"least 1, got depth={depth}, widen={widen}"
            )
        inputs = 16
        self.conv1 = conv3x3(channels, inputs)
        for i in range(3):
            width = 16 * 2**i * widen
            stage: list[nn.Module] = []
            for j in range(blocks):
                stage.append(WideBlock(inputs, width, stride=2 if i > 0 and j == 0 else 1))
                inputs = width
            layer = nn.Sequential(*stage)
            self.add_module(f"block{i + 1}", nn.Sequential(OrderedDict(layer=layer)))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, h, w)."""
        x = self.conv1(x)
        for stage in ("block1", "block2", "block3"):
            x = getattr(self, stage)(x)
        return self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))


def wide_resnet(
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    depth: int = 28,
    widen: int = 10,
) -> WideResNet:
    """WRN-depth-widen; any image size. See `WideResNet`."""
    return WideResNet(depth, widen, classes=classes, channels=channels)


wide_resnet16_4 = partial(wide_resnet, depth=16, widen=4)
wide_resnet28_10 = partial(wide_resnet, depth=28, widen=10)
wide_resnet34_10 = partial(wide_resnet, depth=34, widen=10)
