"""An exported file against the torch model it came from."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from semisparse import ops
from semisparse.check import TOLERANCE, relative_error
from semisparse.errors import ExportError, FileFormatError
from semisparse.export.unread import Plane, read_positions
from semisparse.runtime import InferenceSession

_Arrays = list[NDArray[Any]]


def verify(
    model: nn.Module, inputs: tuple[Tensor, ...], file: bytes, path: Path, dynamic: bool
) -> dict[str, float]:
    """Compare a file with the torch model in float64, on the inputs and on random ones.

    Args:
        model: float32, in eval mode, masks on.
        inputs: of the model's forward.
        file: the serialised ONNX model.
        path: where it is to be written, for the error.
        dynamic: whether the batch size is free, so that another one is to be tried.

    Returns:
        The worst norm-relative error of the `portable` bodies and of the `library`.

    Raises:
        ExportError: an error is over 1e-5, or ONNX Runtime does not load the file.
        LibraryError: the operator library is missing.
    """
    exact = copy.deepcopy(model).double()
    try:
        sessions = {
            "portable": InferenceSession(file, library=False),
            "library": InferenceSession(file),
        }
    except FileFormatError as refusal:
        raise ExportError(
            f"{path} is not written, because it would not load: {refusal}"
        ) from refusal
    errors = dict.fromkeys(sessions, 0.0)
    for batch in (inputs, _random_like(inputs, larger=dynamic)):
        expected = _outputs(exact(*_to_double(batch)))
        for kind, session in sessions.items():
            computed = session.run(None, _feeds(session, batch))
            error = max(map(relative_error, computed, expected))
            if not error <= TOLERANCE:
                raise ExportError(
                    f"{path} is not written, because the {kind} operators are {error:.1e} away "
                    f"from torch in float64, over the limit of {TOLERANCE:.0e}; "
                    f"{_first_off(exact, batch, file, kind)}."
                )
            errors[kind] = max(errors[kind], error)
    return errors


def _first_off(exact: nn.Module, inputs: tuple[Tensor, ...], file: bytes, kind: str) -> str:
    """Which value differs first, among those that convolutions read.

    Those are the ones that torch has too: behind a convolution the file has batch norm, residual
    and activation in the same node. What is not read may hold anything.
    """
    seen = _layer_inputs(exact, inputs)
    proto = onnx.load_from_string(file)
    producers = {name: node for node in proto.graph.node for name in node.output}
    first = {n.name: ops.layers_of(n.op_type, n.name)[0] for n in proto.graph.node}
    read = [
        (node, node.input[0], seen[first[node.name]])
        for node in proto.graph.node
        if node.domain == ops.DOMAIN
        and first[node.name] in seen
        and node.input[0] in producers
        and not ops.reads_otherwise(node.op_type)
    ]
    values_of = {v.name: v for n in ir.serde.deserialize_model(proto).graph for v in n.outputs}
    known: dict[ir.Value, Plane | None] = {}
    read_of = {name: read_positions(values_of[name], known) for _, name, _ in read}
    del proto.graph.output[:]
    names = list(dict.fromkeys(name for _, name, _ in read))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    if not names:
        return "it has one layer only"
    session = InferenceSession(proto.SerializeToString(), library=kind == "library")
    values = dict(zip(names, session.run(None, _feeds(session, inputs)), strict=True))
    for node, name, expected in read:
        value = values[name]
        # A padding that stayed a node of its own lies between the layer's input and the operator's.
        if value.shape != expected.shape:
            continue
        where = read_of[name]
        here = np.s_[:] if where is None else np.s_[:, where]
        error = relative_error(value[here], expected[here])
        if not error <= TOLERANCE:
            return (
                f"the first layer that is off is {producers[name].name!r}, whose output differs by "
                f"{error:.1e} where {node.name!r} reads it"
            )
    return "all layers read the right values, so the last one or what follows it is off"


def _layer_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Mapping[str, NDArray[Any]]:
    """What each layer reads, by node name, as the convolution that it is in the file reads it."""
    seen: dict[str, NDArray[Any]] = {}
    calls: dict[str, int] = defaultdict(int)

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] += 1
            if not args or not isinstance(args[0], Tensor):
                return
            x = args[0].numpy(force=True)
            node = name if calls[name] == 1 else f"{name}#{calls[name]}"
            linear = isinstance(module, nn.Linear)
            if x.ndim == 4:
                seen[node] = x if linear else x.transpose(0, 2, 3, 1)
            elif x.ndim == 2 and linear:
                seen[node] = x[:, None, None, :]

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(*_to_double(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _random_like(inputs: tuple[Tensor, ...], larger: bool) -> tuple[Tensor, ...]:
    """Normal values of the same shape, or of a batch that is larger by one."""
    generator = torch.Generator().manual_seed(0)
    wanted = (torch.cat([x, x[:1]]) if larger and x.dim() else x for x in inputs)
    return tuple(
        torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in wanted
    )


def _to_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def _outputs(result: Any) -> _Arrays:
    return [leaf.numpy(force=True) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _feeds(session: InferenceSession, inputs: tuple[Tensor, ...]) -> dict[str, NDArray[Any]]:
    names = [value.name for value in session.get_inputs()]
    return {name: np.asarray(x.numpy(force=True)) for name, x in zip(names, inputs, strict=True)}
