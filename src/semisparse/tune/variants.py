"""Masks put into an exported file without the model that it came from, to time what they save."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, product
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from semisparse import ops
from semisparse.bench.work import Layer, work_of
from semisparse.blocks import natural_block
from semisparse.errors import FileFormatError

# Of the additive recurrence whose points cover a square most evenly (M. Roberts, "The unreasonable
# effectiveness of quasirandom sequences", 2018): 1 / g and 1 / g^2 where g^3 = g + 1.
_STEPS = (0.7548776662466927, 0.5698402909980532)


class Choice(NamedTuple):
    """Layers of a place that are masked alike, in squares with sides of `block` positions."""

    layers: tuple[str, ...]
    block: int


@dataclass(frozen=True)
class Place:
    """What one mask decides on: a convolution with those before it that need not compute what it
    does not read.

    A pointwise convolution reads its own position only, so where it is masked, nobody reads the
    one before it either, if it is the only reader. Such are the last two of a bottleneck, the
    stages of a chain behind its expansion, and in ConvNeXt all layers of a block.

    Attributes:
        nodes: their names, in order; a chain is one.
        layers: of them, in order.
        choices: how it may be masked: the last layer, which spares the others; or the expansion or
            the stem of a chain too, whose positions the depthwise stage spreads over their
            neighbours. In the blocks that suit the algorithms of the layers, or in single
            positions.
    """

    nodes: tuple[str, ...]
    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]


def places(model: onnx.ModelProto, block: int | str) -> tuple[Place, ...]:
    """Where masks can be in a file without masks.

    Args:
        model: as exported.
        block: side of the squares of positions that are masked as a whole; or "auto", both what
            suits a layer and single positions, which save less time and keep more accuracy.

    Raises:
        FileFormatError: the file has masks, or no operator of semisparse.
    """
    nodes = {node.name: node for node in model.graph.node if _is_ours(node)}
    if not nodes:
        raise FileFormatError(
            "the file has no convolution of semisparse; give a file that semisparse exported."
        )
    # A dense model too leaves out what nobody reads, such as what is before a strided 1x1 layer.
    masked = [name for name, node in nodes.items() if _parse(node.op_type).fill]
    if masked and _metadata(model, "semisparse.sparsity") != "{}":
        raise FileFormatError(
            f"{masked[0]} is masked already; give the file of the model without masks."
        )
    by_node = {
        name: tuple(group)
        for name, group in groupby(work_of(model).layers, key=lambda layer: layer.node)
        if name in nodes
    }
    # A layer that is called again has one mask for all calls, so it is no choice of one node.
    calls = Counter(_layer(layer.name) for layers in by_node.values() for layer in layers)
    found = []
    for names in _read_by_position(model, by_node):
        layers = tuple(layer for name in names for layer in by_node[name])
        if layers[-1].positions == 1:
            continue  # which is always computed, as in a network's head
        subsets: list[tuple[str, ...]] = [(layers[-1].name,)]
        if nodes[names[-1]].op_type.startswith(("Expand", "Stem")):
            subsets.append((layers[0].name, layers[-1].name))
        sides = {1, *(_natural(layer, nodes[layer.node], by_node) for layer in layers)}
        if block != "auto":
            sides = {int(block)}
        choices = tuple(Choice(*pair) for pair in product(subsets, sorted(sides)))
        if any(calls[_layer(layer.name)] > 1 or layer.node in masked for layer in layers):
            choices = ()
        found.append(Place(tuple(names), layers, choices))
    return tuple(found)


def _read_by_position(
    model: onnx.ModelProto, by_node: Mapping[str, Sequence[Layer]]
) -> list[list[str]]:
    """The nodes, each behind those of which nothing is read but what itself computes."""
    nodes = {node.name: node for node in model.graph.node if node.name in by_node}
    readers = defaultdict(list)
    for node in model.graph.node:
        for value in set(node.input):
            readers[value].append(node)
    ends = {value.name for value in model.graph.output}
    of_node: dict[str, list[str]] = {}
    spared: dict[str, list[str]] = defaultdict(list)
    for name, node in nodes.items():
        group = [*chain(*(of_node[source] for source in spared[name])), name]
        of_node |= dict.fromkeys(group, group)
        reader = _only_reader(node.output[0], readers, ends) if _is_conv(node) else None
        if (
            reader is not None
            and reader.name in by_node
            and _is_pointwise(reader, by_node[reader.name])
            # In between a plane could be spread, of one position as a gate's.
            and by_node[name][-1].plane == by_node[reader.name][0].plane
        ):
            spared[reader.name].append(name)
    return [group for name, group in of_node.items() if name == group[0]]


def _only_reader(
    value: str, readers: Mapping[str, Sequence[onnx.NodeProto]], ends: Collection[str]
) -> onnx.NodeProto | None:
    """The only convolution that reads a value as its plane, by way of nothing but what works
    position by position; None if there are several, or something else reads it.
    """
    found: dict[str, onnx.NodeProto] = {}
    values, seen = [value], {value}
    while values:
        value = values.pop()
        if value in ends:
            return None
        for node in readers[value]:
            if _is_ours(node) and node.input[0] == value and value not in node.input[1:]:
                found[node.name] = node
            elif ops.is_by_position(node.domain, node.op_type, _attributes(node).get("axis")):
                values += [output for output in node.output if output not in seen]
                seen.update(node.output)
            else:
                return None
    return next(iter(found.values())) if len(found) == 1 else None


def can_mask(place: Place, choice: Choice, sparsity: float) -> bool:
    """Whether each layer of the choice has masked positions at that sparsity."""
    return not any(
        spread_mask(*layer.plane, sparsity, choice.block).all()
        for layer in place.layers
        if layer.name in choice.layers
    )


def put_masks(
    model: onnx.ModelProto, masked: Mapping[Place, Choice], sparsity: float, fill: str
) -> onnx.ModelProto:
    """A copy in which these places are masked.

    The masks are spread evenly, but are no masks to train with: what they hold is nearly right,
    and takes the same time.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    by_node = {name: (place, choice) for place, choice in masked.items() for name in place.nodes}
    constants: dict[str, NDArray[Any]] = {}
    unread: dict[str, NDArray[np.uint8]] = {}  # of a value, where it is computed
    for node in result.graph.node:
        if ops.is_layer_norm(node.domain, node.op_type) and node.input[0] in unread:
            constants[f"{node.name}/mask"] = unread[node.input[0]]
            node.op_type = "LayerNormMasked"
            node.input.append(f"{node.name}/mask")
        if node.name not in by_node:
            continue
        place, choice = by_node[node.name]
        # What nobody reads holds the bias, as an exported model has it.
        spared = node.name != place.nodes[-1]
        own_fill = "bias" if spared else fill
        own: list[list[str]] = []
        for layer in place.layers:
            if layer.node != node.name:
                continue
            wanted = sparsity if spared or layer.name in choice.layers else 0.0
            mask = spread_mask(*layer.plane, wanted, choice.block)
            if spared:
                unread[node.output[0]] = mask.astype(np.uint8)
            arrays = {f"{layer.name}/{kind}": a for kind, a in _fill_arrays(mask, own_fill).items()}
            constants |= arrays
            own.append([*arrays])
        # X, then weights and bias of each stage, then gate and residual.
        inputs = list(node.input)
        staged = [(*inputs[1 + 2 * i : 3 + 2 * i], *names) for i, names in enumerate(own)]
        rest = inputs[1 + 2 * len(own) :]
        node.op_type = dataclasses.replace(_parse(node.op_type), fill=own_fill).name
        node.ClearField("input")
        node.input.extend([inputs[0], *(name for stage in staged for name in stage), *rest])
    result.graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in constants.items()
    )
    bodies = {
        body.name: body
        for name in {node.op_type for node in result.graph.node if node.domain == ops.DOMAIN}
        for body in ops.portable_bodies(name)
    }
    result.ClearField("functions")
    result.functions.extend(bodies.values())
    return result


def spread_mask(height: int, width: int, sparsity: float, block: int) -> NDArray[np.bool_]:
    """A mask `[height, width]` of evenly spread blocks, True where computed; one block always is.

    As many blocks are masked as by `semisparse.masks.mask_from_score`.
    """
    rows, columns = math.ceil(height / block), math.ceil(width / block)
    heights = np.minimum(block, height - block * np.arange(rows))
    widths = np.minimum(block, width - block * np.arange(columns))
    areas = np.outer(heights, widths).ravel()
    row, column = np.indices((rows, columns))
    score = (_STEPS[0] * row + _STEPS[1] * column) % 1
    order = score.ravel().argsort(kind="stable")
    masked = areas[order].cumsum() - areas[order]
    taken = int(np.abs(masked - round(sparsity * height * width)).argmin())
    computed = np.ones(rows * columns, np.bool_)
    computed[order[:taken]] = False
    blocks = computed.reshape(rows, columns)
    return blocks.repeat(block, 0).repeat(block, 1)[:height, :width]


def _fill_arrays(mask: NDArray[np.bool_], fill: str) -> dict[str, NDArray[Any]]:
    """A mask as the operators take it, by the names of their inputs.

    Each masked position copies the computed one before it, or has the mean of those before and
    behind it.
    """
    if fill == "bias":
        return {"mask": mask.astype(np.uint8)}
    before = _last_computed(mask)
    if fill == "nearest":
        return {"source": before}
    behind = mask.size - 1 - _last_computed(mask[::-1, ::-1])[::-1, ::-1]
    share = np.where(before == behind, 0, 0.5).astype(np.float32)
    return {"sources": np.stack([before, behind]), "share": share}


def _last_computed(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The last computed position up to each one, or else the first of all, as its index."""
    index = np.arange(mask.size, dtype=np.int32)
    before = np.maximum.accumulate(np.where(mask.ravel(), index, -1))
    source = np.where(before < 0, index[mask.ravel()][0], before)
    return source.astype(np.int32).reshape(mask.shape)


def _is_ours(node: onnx.NodeProto) -> bool:
    return _is_conv(node) or (node.domain == ops.DOMAIN and ops.is_chain(node.op_type))


def _is_conv(node: onnx.NodeProto) -> bool:
    return node.domain == ops.DOMAIN and ops.is_conv(node.op_type)


def _is_pointwise(node: onnx.NodeProto, layers: Sequence[Layer]) -> bool:
    if not _is_conv(node) or layers[0].weights[2:] != (1, 1):
        return False
    given = _attributes(node)
    return not any(given.get("pads", ())) and set(given.get("strides", [1])) == {1}


def _metadata(model: onnx.ModelProto, key: str) -> str | None:
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _parse(op_type: str) -> ops.ConvOp | ops.ChainOp:
    try:
        return (ops.ChainOp if ops.is_chain(op_type) else ops.ConvOp).parse(op_type)
    except ValueError as error:
        raise FileFormatError(
            f"{op_type} is no operator of this semisparse; export the model again."
        ) from error


def _layer(name: str) -> str:
    """Without the number of the call."""
    return name.partition("#")[0]


def _natural(layer: Layer, node: onnx.NodeProto, by_node: Mapping[str, Sequence[Layer]]) -> int:
    # In a chain the attributes are those of the depthwise stage.
    own = len(by_node[layer.node]) == 1 or layer.weights[1] == 1
    given = _attributes(node) if own else {}
    groups = given.get("group", 1)
    return natural_block(
        layer.weights[2:],
        given.get("strides", (1, 1)),
        given.get("dilations", (1, 1)),
        groups,
        layer.weights[1] * groups,
        layer.weights[0],
        *layer.plane,
    )
