"""Small residual networks for 32x32 images."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from typing_extensions import override


class SmallResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels (He et al. 2016, section 4.2), or
    another width and two and four times as many.

    Takes `[N, input_channels, H, W]` and returns logits `[N, num_classes]`. Shortcuts between
    stages are 1x1 convolutions, so the depth is `6 * blocks + 2`.
    """

    def __init__(self, blocks: int, num_classes: int, input_channels: int, width: int = 16) -> None:
        super().__init__()
        first = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        logits: torch.Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def resnet8(num_classes: int, input_channels: int = 3) -> SmallResNet:
    """`SmallResNet` of 8 layers."""
    return SmallResNet(1, num_classes, input_channels)


def resnet20(num_classes: int, input_channels: int = 3) -> SmallResNet:
    """`SmallResNet` of 20 layers."""
    return SmallResNet(3, num_classes, input_channels)
