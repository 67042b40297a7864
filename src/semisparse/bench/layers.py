"""Where a network's time goes: ours and stock ONNX Runtime, layer by layer, by its own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from semisparse.bench.models import Model, Variant
from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave
from semisparse.bench.work import ACTIVATED
from semisparse.runtime import InferenceSession


@dataclass(frozen=True)
class LayerTime:
    """A layer of ours beside the same layer of the dense model in stock ONNX Runtime.

    Attributes:
        name: of the layer; "(other)" is everything that is not a convolution or matrix product.
        weights: [C_out, C_in / group, kh, kw]; empty for "(other)".
        plane: [H_out, W_out].
        sparsity: fraction of the plane that is masked.
        flops: operations on one image, masked positions left out.
        seconds: of ours, median over the calls.
        stock_seconds: of stock ONNX Runtime; None if its profile does not show the layer. What it
            fuses into the layer (residual, activation) is in it, as it is in ours.
    """

    name: str
    weights: tuple[int, ...]
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
        ours, stock = (_node_seconds(session) for session in sessions.values())
    rows = []
    for layer in variant.work.layers:
        rows.append(
            LayerTime(
                layer.name,
                layer.weights,
                layer.plane,
                layer.sparsity,
                layer.flops,
                ours.pop(layer.name, 0.0),
                stock.pop(layer.name, None),
            )
        )
    rows.append(LayerTime("(other)", (), (0, 0), 0.0, 0, sum(ours.values()), sum(stock.values())))
    return tuple(rows)


def _node_seconds(session: onnxruntime.InferenceSession) -> dict[str, float]:
    """Median seconds of every node by its name, freed of what ONNX Runtime adds to it."""
    events = json.loads(Path(session.end_profiling()).read_text())
    taken = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
            taken[name.removeprefix("fused ").removesuffix(ACTIVATED)].append(event["dur"] * 1e-6)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
