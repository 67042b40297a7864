"""OpenVINO on the dense ONNX model, one latency stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _same_signal_stack() -> Iterator[None]:
    """Restores this thread's alternate stack for signal handlers.

    OpenVINO 2026.4.1 sets one and frees it, so the next signal that Python handles (Ctrl-C, or the
    end of a child process once torch has loaded data with workers) would kill the process.
    """
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import openvino

    with _same_signal_stack():
        compiled = openvino.Core().compile_model(
            str(model.dense),
            "CPU",
            {
                # Its default on CPUs with bfloat16 instructions is bfloat16.
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
            },
        )
        request = compiled.create_infer_request()
        request.infer([model.x])

    def run() -> Floats:
        request.infer([model.x], share_inputs=True, share_outputs=True)
        output: Floats = request.get_output_tensor(0).data
        return output

    return run


PEER = Peer("openvino", ("openvino",), _load)
