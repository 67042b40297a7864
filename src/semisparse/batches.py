"""Images in as many batches as their network runs fastest with, where the result is the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# What a network holds of a batch, as a piece of over 32 MB, glibc gives back to the system at once
# and gets again page by page. EfficientNet-Lite0, 64 images of 224x224 on one thread of an EPYC
# (Zen 4): 1.2 s in batches of 4, 1.8 of 8, 4.3 of 64 (2.9 of these in the system), 1.4 of 1.
_PIXELS = 1 << 18
_MOST = 256
_ON_DEVICE = 64


def batches(
    images: Tensor, device: torch.device, batch_size: int | None = None
) -> tuple[Tensor, ...]:
    """Parts of images `[N, C, H, W]`, N from 1, of which none is much smaller than the others.

    Args:
        images: on any device.
        device: where they are to run.
        batch_size: about so many in each; by default what suits the device.
    """
    if batch_size is None:
        fitting = _PIXELS // (images.shape[-2] * images.shape[-1])
        batch_size = max(1, min(_MOST, fitting)) if device.type == "cpu" else _ON_DEVICE
    return images.tensor_split(math.ceil(len(images) / batch_size))
