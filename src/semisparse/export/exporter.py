"""From a torch model to one `.onnx` file."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from semisparse import ops
from semisparse.errors import ExportError, ModelError
from semisparse.export.chain import fuse_chains, is_chain
from semisparse.export.fold import fold
from semisparse.export.fuse import fuse, is_conv
from semisparse.export.gate import fuse_gates
from semisparse.export.graph import dynamic_batch, name_ends, simplify, trace
from semisparse.export.head import head_to_conv
from semisparse.export.layer_norm import own_layer_norms
from semisparse.export.layout import read_nchw, to_nhwc, transposes
from semisparse.export.linear import linear_to_conv
from semisparse.export.mask import layer_of, put_masks
from semisparse.export.metadata import metadata
from semisparse.export.squeeze_excite import fuse_squeeze_excite, is_squeeze_excite
from semisparse.export.unread import mask_unread
from semisparse.export.verify import verify as verify_file
from semisparse.files import writing
from semisparse.layers import MaskedLayer
from semisparse.masks import sparsity_of

# Protocol buffers hold at most 2 GiB; the rest of a file is small beside its weights.
_MAX_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class ExportedLayer:
    """A convolution in the file.

    Attributes:
        name: the layer's, with `#2` and so on for further calls.
        op: the operator that computes it, such as `ConvFillNearestAddRelu`; several layers in a row
            have one if they are a chain.
        height, width: of the output plane.
        sparsity: fraction of the plane that is masked.
    """

    name: str
    op: str
    height: int
    width: int
    sparsity: float


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` wrote.

    Attributes:
        path: the file.
        layers: its convolutions in order.
        errors: norm-relative, against torch in float64, of the `portable` bodies and of the
            `library`; empty if the file was not verified.
        transposes: how many are in the graph.
        dynamic_batch: whether the file runs at any batch size.
        size: of the file in bytes.
        opset: of the default domain.
    """

    path: Path
    layers: tuple[ExportedLayer, ...]
    errors: dict[str, float]
    transposes: int
    dynamic_batch: bool
    size: int
    opset: int


def export_onnx(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    chains: bool = True,
) -> ExportReport:
    """Write a model, with its masks, as one `.onnx` file that runs anywhere.

    Height and width are those of the example, the batch size is free where the model allows it.
    Inputs and outputs are NCHW, named `input` and `output`, or `input_0`, `input_1` and so on.

    Args:
        model: float32, on any device; it is not changed.
        example_input: `[N, C, H, W]`, or the tensors that the model's forward takes.
        path: the file; one that is there is replaced, after everything else has succeeded.
        verify: compare the file with torch before it is written.
        chains: fuse the convolutions of inverted residuals (docs/format.md); False for comparing.

    Raises:
        ModelError: the model has no convolution, has values that are not finite or not float32, or
            torch cannot export it.
        ExportError: the file does not compute what torch computes, is over 2 GiB, or cannot be
            written. Nothing is written then.
        LibraryError: the operator library, which `verify` needs, is missing.
    """
    path = Path(path)
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    inputs = tuple(x.detach().cpu() for x in inputs)
    _check_target(path)
    _check_model(model)
    model = copy.deepcopy(model).cpu().eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MaskedLayer)}

    graph_model = build(model, inputs, layers, chains)
    masks = {name: layer.mask for name, layer in layers.items()}
    graph_model.metadata_props.update(metadata(model, masks))
    file = ir.to_proto(graph_model).SerializeToString()
    with torch.no_grad():
        dynamic = dynamic_batch(graph_model)
        errors = verify_file(model, inputs, file, path, dynamic) if verify else {}
    _write(path, file)
    return ExportReport(
        path=path,
        layers=_exported_layers(graph_model, masks),
        errors=errors,
        transposes=transposes(graph_model),
        dynamic_batch=dynamic,
        size=len(file),
        opset=ops.OPSET,
    )


def build(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    layers: dict[str, MaskedLayer],
    chains: bool,
) -> ir.Model:
    """The graph as it goes into the file: the passes in their order."""
    layers = {name: layer for name, layer in layers.items() if not layer.mask.all()}
    graph_model = trace(model, inputs)
    simplify(graph_model)
    linear_to_conv(graph_model)
    fold(graph_model, layers)
    to_nhwc(graph_model)
    if not any(map(is_conv, graph_model.graph)):
        raise ModelError(
            f"{type(model).__name__} has no 2-d float32 convolution with constant weights, so "
            "there is nothing to run faster; export it with torch.onnx.export."
        )
    head_to_conv(graph_model)
    put_masks(graph_model, layers)
    fuse(graph_model)
    fuse_gates(graph_model)
    fuse_squeeze_excite(graph_model)
    if chains:
        fuse_chains(graph_model)
    own_layer_norms(graph_model)
    mask_unread(graph_model)
    read_nchw(graph_model)
    passes.OutputFixPass()(graph_model)
    name_ends(graph_model.graph)
    passes.ClearMetadataAndDocStringPass()(graph_model)
    passes.NameFixPass()(graph_model)
    _add_bodies(graph_model)
    return graph_model


def _add_bodies(graph_model: ir.Model) -> None:
    names = sorted({node.op_type for node in graph_model.graph if node.domain == ops.DOMAIN})
    for name in names:
        for body in ops.portable_bodies(name):
            function = ir.serde.deserialize_function(body)
            graph_model.functions[function.identifier()] = function


def _check_model(model: nn.Module) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > _MAX_BYTES:
        raise ExportError(
            f"the model has {size} bytes of weights, and one .onnx file holds at most "
            f"{_MAX_BYTES}; export a smaller model or its parts."
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            raise ModelError(f"{name} is {tensor.dtype}; convert the model with model.float().")
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise ModelError(
                f"{name} has {bad} values that are NaN or infinite; export a checkpoint from "
                "before training diverged."
            )


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise ExportError(f"{path} is a folder; give the path of a file.")
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"the folder {path.parent} is not writable; choose another one.")


def _write(path: Path, file: bytes) -> None:
    try:
        with writing(path) as draft:
            draft.write_bytes(file)
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error}); choose another place.") from error


def _exported_layers(graph_model: ir.Model, masks: dict[str, Tensor]) -> tuple[ExportedLayer, ...]:
    listed = []
    for node in graph_model.graph:
        gate = is_squeeze_excite(node)
        if not is_conv(node) and not is_chain(node) and not gate:
            continue
        for index, name in enumerate(ops.layers_of(node.op_type, node.name or "")):
            height, width = (1, 1) if gate else _plane(node, index)
            mask = masks.get(layer_of(name))
            sparsity = 0.0 if mask is None else sparsity_of(mask)
            listed.append(ExportedLayer(name, node.op_type, height, width, sparsity))
    return tuple(listed)


def _plane(node: ir.Node, index: int) -> tuple[int, int]:
    """`[H_out, W_out]` of a node's layer of that number."""
    x, weights, *_ = node.inputs
    stem = {
        key: node.attributes[key].as_ints() for key in ops.STEM_ATTRIBUTES if key in node.attributes
    }
    shapes = _sizes(x), _sizes(node.outputs[0]), _sizes(weights)[2:]
    return ops.plane_of(node.op_type, index, *shapes, stem)


def _sizes(value: ir.Value | None) -> list[int]:
    """Of a value, -1 where it is free."""
    assert value is not None
    assert value.shape is not None
    return [size if isinstance(size, int) else -1 for size in value.shape]
