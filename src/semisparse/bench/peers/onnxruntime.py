"""ONNX Runtime without our library: the same session options, the dense model."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every ONNX Runtime session that is timed, ours and stock."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def runner(session: onnxruntime.InferenceSession, x: Floats) -> Callable[[], Floats]:
    """A function that runs the session's first input and output once."""
    feed = {session.get_inputs()[0].name: x}
    names = [session.get_outputs()[0].name]

    def run() -> Floats:
        output: Floats = session.run(names, feed)[0]
        return output

    return run


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    session = onnxruntime.InferenceSession(
        str(model.dense), session_options(threads), providers=["CPUExecutionProvider"]
    )
    return runner(session, model.x)


PEER = Peer("onnxruntime", ("onnxruntime",), _load)
