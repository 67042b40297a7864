"""OpenVINO on the dense ONNX model, one latency stream."""

from __future__ import annotations

from collections.abc import Callable

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import openvino

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

    def run() -> Floats:
        request.infer([model.x], share_inputs=True, share_outputs=True)
        output: Floats = request.get_output_tensor(0).data
        return output

    return run


PEER = Peer("openvino", ("openvino",), _load)
