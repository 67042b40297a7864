"""Masks put into the convolutions of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from semisparse import ops
from semisparse.errors import ModelError
from semisparse.export.graph import constant
from semisparse.layers import MaskedLayer
from semisparse.masks import sources_of


def put_masks(model: ir.Model, layers: Mapping[str, MaskedLayer]) -> None:
    """Give the convolution of every masked layer its mask or sources.

    Layers of one plane mostly have one mask, which is in the file once.

    Args:
        model: in NHWC, its convolutions named after their layers.
        layers: those with masked positions, by name.

    Raises:
        ModelError: a masked layer has no convolution of its own in the graph.
    """
    shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    left = set(layers)
    for node in model.graph:
        layer = layer_of(node.name or "")
        if node.domain != ops.DOMAIN or node.op_type != "Conv" or layer not in layers:
            continue
        left.discard(layer)
        masked = layers[layer]
        op = ops.ConvOp(fill=masked.fill)
        node.op_type = op.name
        node.resize_inputs(len(op.inputs))
        for name, array in fill_arrays(masked.mask, masked.fill).items():
            key = (name, array.shape, array.tobytes())
            if key not in shared:
                shared[key] = constant(model, f"{layer}.{name}", array)
            node.replace_input_with(op.inputs.index(name), shared[key])
    if left:
        raise ModelError(
            f"the masked layers {sorted(left)} have no 2-d float32 convolution with constant "
            "weights in the exported graph; skip them in the SparsityConfig or do not mask them."
        )


def fill_arrays(mask: Tensor, fill: str) -> dict[str, NDArray[Any]]:
    """What tells a convolution where it is masked, by the names in `docs/format.md`.

    Args:
        mask: bool `[H, W]`.
        fill: of the convolution.
    """
    if fill == "bias":
        return {"mask": mask.numpy().astype(np.uint8)}
    arrays = (tensor.numpy() for tensor in sources_of(mask, fill))
    return dict(zip(ops.FILL_INPUTS[fill], arrays, strict=True))


def layer_of(name: str) -> str:
    """Name of the layer, whichever call of it the name tells."""
    return name.partition("#")[0]
