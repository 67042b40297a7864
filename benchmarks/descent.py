"""Training as all benchmarks of accuracy have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from semisparse.sparsifier import Sparsifier


def descend(
    model: nn.Module,
    batches: Iterable[Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    sparsifier: Sparsifier | None,
    loss_of: Callable[[Tensor], Tensor],
    optimizer: str = "sgd",
) -> None:
    """SGD with momentum, or "adamw"; the rate rises for 5% of the steps and falls along a cosine.

    `loss_of` runs the model on a batch, of which there are `steps`.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    descent: torch.optim.Optimizer
    if optimizer == "adamw":
        descent = torch.optim.AdamW(groups, lr=learning_rate)
    else:
        descent = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    model.train()
    for step, batch in enumerate(batches):
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in descent.param_groups:
            group["lr"] = learning_rate * cosine * min(1, (step + 1) / max(1, 0.05 * steps))
        if sparsifier is not None:
            sparsifier.step()
        loss = loss_of(batch)
        descent.zero_grad()
        loss.backward()
        descent.step()
        if sparsifier is not None:
            sparsifier.observe(loss)
