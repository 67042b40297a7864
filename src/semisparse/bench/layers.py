"""Where a network's time goes: ours and stock ONNX Runtime, layer by layer, by its own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import onnxruntime

from semisparse.bench.models import Model, Variant
from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave
from semisparse.bench.work import ACTIVATED, Work
from semisparse.runtime import InferenceSession


@dataclass(frozen=True)
class LayerTime:
    """A layer of ours, or a chain, beside the same of the dense model in stock ONNX Runtime.

    Attributes:
        name: of the layer, or the layers of a chain joined by "+"; "(other)" is everything that is
            not a convolution or matrix product.
        weights: of each layer, [C_out, C_in / group, kh, kw]; empty for "(other)".
        plane: [H_out, W_out], of a chain's last layer.
        sparsity: fraction of the operations that is masked: for one layer, of the plane.
        flops: operations on one image, masked positions left out.
        seconds: of ours, median over the calls.
        stock_seconds: of stock ONNX Runtime, the sum for a chain; None if its profile does not show
            them. What it fuses into a layer (residual, activation) is in it, as it is in ours.
    """

    name: str
    weights: tuple[tuple[int, ...], ...]
    plane: tuple[int, int]
    sparsity: float
    flops: int
    seconds: float
    stock_seconds: float | None


def profile(model: Model, variant: Variant, threads: int, *, rounds: int) -> tuple[LayerTime, ...]:
    """Profiles the variant and the dense model in stock ONNX Runtime, call by call in turns.

    Raises:
        FileFormatError: ONNX Runtime refuses a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for side, path in (("ours", variant.path), ("stock", model.dense)):
            options = session_options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, side))
            sessions[side] = InferenceSession(path, sess_options=options, library=side == "ours")
        interleave(
            {side: runner(session, model.x) for side, session in sessions.items()},
            rounds,
            min_seconds=0.0,
        )
        ours, stock = (
            {name: statistics.median(seconds) for name, seconds in node_samples(session).items()}
            for session in sessions.values()
        )
    rows = []
    for node, group in groupby(variant.work.layers, key=lambda layer: layer.node):
        work = Work(tuple(group))
        names = [layer.name for layer in work.layers]
        rows.append(
            LayerTime(
                node,
                tuple(layer.weights for layer in work.layers),
                work.layers[-1].plane,
                1 - work.flops / work.dense().flops,
                work.flops,
                ours.pop(node, 0.0),
                sum(map(stock.pop, names)) if stock.keys() >= set(names) else None,
            )
        )
    rows.append(LayerTime("(other)", (), (0, 0), 0.0, 0, sum(ours.values()), sum(stock.values())))
    return tuple(rows)


def node_samples(session: onnxruntime.InferenceSession) -> dict[str, list[float]]:
    """Ends a session's profile: by its name, the seconds of every call of a node.

    The names are freed of what ONNX Runtime adds to them.
    """
    events = json.loads(Path(session.end_profiling()).read_text())
    taken = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removeprefix("fused ")
            for added in ("_kernel_time", "_nchwc", "/MatMulAddFusion", ACTIVATED):
                name = name.removesuffix(added)
            taken[name].append(event["dur"] * 1e-6)
    return taken
