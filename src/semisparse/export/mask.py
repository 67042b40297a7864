"""Masks put into the convolutions of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from semisparse import ops
from semisparse.errors import ModelError
from semisparse.export.graph import constant
from semisparse.layers import MaskedConv2d
from semisparse.masks import source_map


def put_masks(model: ir.Model, layers: Mapping[str, MaskedConv2d]) -> None:
    """Give the convolution of every masked layer its mask or source map.

    Layers of one plane mostly have one mask, which is in the file once. A layer with nothing masked
    stays dense.

    Args:
        model: in NHWC, its convolutions named after their layers.
        layers: the masked layers by name.

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
        if masked.mask.all():
            continue
        if masked.fill == "nearest":
            array = source_map(masked.mask, masked.fill).numpy().astype(np.int32)
        else:
            array = masked.mask.numpy().astype(np.uint8)
        op = ops.ConvOp(fill=masked.fill)
        key = (op.inputs[-1], array.shape, array.tobytes())
        if key not in shared:
            shared[key] = constant(model, f"{layer}.{op.inputs[-1]}", array)
        node.op_type = op.name
        node.resize_inputs(len(op.inputs))
        node.replace_input_with(len(op.inputs) - 1, shared[key])
    if left:
        raise ModelError(
            f"the masked layers {sorted(left)} have no 2-d float32 convolution with constant "
            "weights in the exported graph; skip them in the SparsityConfig or do not mask them."
        )


def layer_of(name: str) -> str:
    """Name of the layer, whichever call of it the name tells."""
    return name.partition("#")[0]
