"""A torch model as an ONNX graph in torch's layout, its convolutions named after its layers."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from semisparse import ops
from semisparse.errors import ModelError
from semisparse.layers import masking_disabled

_SCOPES = "pkg.torch.onnx.name_scopes"

# No rule that merges equal tensors or nodes: layers of equal weights may have different masks.
_RULES = (
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.successive_relu_rule,
    rules.successive_relu_clip_rule,
    rules.successive_clip_relu_rule,
    rules.successive_clip_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    *rules.fuse_hardswish_rules(),
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.materialize_reshape_shape_rule,
    rules.flatten_to_reshape_rule,
)
# What is left of `x[:, :n] += y` where n are all channels. They look for what the rules above leave.
_RULES_AFTER = (rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule)


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> ir.Model:
    """The graph of a model without its masks, which act on its convolutions' linear part.

    The batch size is free where the model does not fix it. Convolutions are named after their
    layers, `name#2` and so on from the second call.

    Args:
        model: in eval mode, on the CPU.
        inputs: of the model's forward.

    Raises:
        ModelError: torch cannot export the model.
    """
    # torch.export takes a batch of one for a constant.
    doubled = tuple(torch.cat([x, x]) if x.dim() else x for x in inputs)
    # torch has annotated neither of the two calls.
    free = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in doubled:
        free[x] = {0: torch.export.Dim.AUTO} if x.dim() else None
    shapes = free.dynamic_shapes(model, doubled)  # type: ignore[no-untyped-call]
    try:
        graph_model = _export(model, doubled, shapes)
    except ModelError:
        graph_model = None
    if graph_model is None or not dynamic_batch(graph_model):
        graph_model = _export(model, inputs, None)
    graph_model.ir_version = ops.IR_VERSION
    _name_nodes(graph_model.graph, model)
    return graph_model


def dynamic_batch(model: ir.Model) -> bool:
    """Whether the batch size of the first input is free."""
    shape = model.graph.inputs[0].shape
    return shape is not None and shape.rank() > 0 and not isinstance(shape[0], int)


def name_ends(graph: ir.Graph) -> None:
    """Name inputs, outputs and the batch dimension as docs/format.md says."""
    for stem, values in (("input", graph.inputs), ("output", graph.outputs)):
        for index, value in enumerate(values):
            value.name = stem if len(values) == 1 else f"{stem}_{index}"
    leading = [value.shape[0] for value in graph.inputs if value.shape]
    symbols = {size for size in leading if isinstance(size, ir.SymbolicDim)}
    if len(symbols) != 1:
        return
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if size in symbols else size for size in value.shape])


def simplify(model: ir.Model) -> None:
    """Compute what is constant and bring equal spellings of an operation into one form."""
    passes.InlinePass()(model)
    # Weights of parametrized layers are constants of any size, and no input is constant.
    optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=1 << 31, output_size_limit=1 << 31
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    rewriter.RewritePass(_RULES)(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    rewriter.RewritePass(_RULES_AFTER)(model)
    passes.IdentityEliminationPass()(model)
    remove_unused(model)


def remove_unused(model: ir.Model) -> None:
    """Remove what no output depends on."""
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is the same in every run."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def only_reader(value: ir.Value | None) -> ir.Node | None:
    """The node that reads a value, where that is the only use of it."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return value.consumers()[0]


def constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer, of the given name or, if that is taken, the name and a number."""
    taken = model.graph.initializers
    free, n = name, 1
    while free in taken:
        n += 1
        free = f"{name}#{n}"
    tensor = ir.tensor(array)
    value = ir.Value(
        name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _export(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: tuple[Any, ...] | None
) -> ir.Model:
    try:
        with masking_disabled(model), torch.no_grad(), _quiet():
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=ops.OPSET,
                optimize=False,
                verbose=False,
            )
    # The exporter raises whatever the model's own code and some dozen of its passes raise.
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(
            f"torch cannot export the model ({type(cause).__name__}: {str(cause).strip()}); "
            "torch.export.export(model, (example_input,)) must accept it."
        ) from error
    assert program is not None
    return program.model


def _name_nodes(graph: ir.Graph, model: nn.Module) -> None:
    """Name nodes after the module that was called; a shared module has its first name."""
    first: dict[nn.Module, str] = {}
    names = {
        name: first.setdefault(module, name)
        for name, module in model.named_modules(remove_duplicate=False)
    }
    calls: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.op_type not in _NAMED or len(scopes) < 2 or not scopes[-2]:
            continue
        layer = names[scopes[-2]]
        calls[layer] += 1
        node.name = layer if calls[layer] == 1 else f"{layer}#{calls[layer]}"


_NAMED = {
    *("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool", "Gemm", "MatMul"),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which speak of its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
