"""What turns gradients into new weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from semisparse.training.settings import TrainSettings

# The learning rate falls to this fraction of what it began with.
_END = 0.01


def optimizer(parameters: Iterable[nn.Parameter], options: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of `options`, with weight decay on weights only, not on biases and batch norm.

    RMSprop smooths and damps as MobileNetV3's training does (arXiv 1905.02244, section 6.1.1).
    """
    trained = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, momentum = options.learning_rate, options.momentum
    match options.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=rate, momentum=momentum, alpha=0.9, eps=0.0316)
        case _:
            return torch.optim.SGD(groups, lr=rate, momentum=momentum)


def schedule(optimizer: torch.optim.Optimizer, options: TrainSettings, steps: int) -> LRScheduler:
    """The learning rate over `steps` steps: to 1%, along a straight line or half a cosine."""
    if options.schedule == "linear":
        return LinearLR(optimizer, 1.0, _END, steps)
    return CosineAnnealingLR(optimizer, steps, eta_min=_END * options.learning_rate)
