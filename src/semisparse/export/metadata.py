"""What an exported file says about itself (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

import semisparse
from semisparse.check import FORMAT
from semisparse.masks import sparsity_of


def metadata(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """The file's `metadata_props`.

    Args:
        model: with the attribute `semisparse_config` while a sparsifier is attached.
        masks: of the masked layers by name, bool `[H_out, W_out]`.
    """
    entries = {
        "semisparse.format": FORMAT,
        "semisparse.version": semisparse.__version__,
        "semisparse.sparsity": json.dumps({name: sparsity_of(m) for name, m in masks.items()}),
        "semisparse.masks_sha256": masks_sha256(masks),
    }
    config = getattr(model, "semisparse_config", None)
    if config is not None:
        entries["semisparse.config"] = config
    return entries


def masks_sha256(masks: Mapping[str, Tensor]) -> str:
    """Hex digest over names, sizes and masks, in name order."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + b"\0")
        digest.update(np.array(masks[name].shape, dtype="<i4").tobytes())
        digest.update(masks[name].cpu().numpy().astype(np.uint8).tobytes())
    return digest.hexdigest()
