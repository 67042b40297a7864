"""PyTorch, layer by layer, channels last. For orientation: it is not an inference engine."""

from __future__ import annotations

from collections.abc import Callable

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import torch

    torch.set_num_threads(threads)
    module = model.module().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.from_numpy(model.x).to(memory_format=torch.channels_last)

    def run() -> Floats:
        with torch.inference_mode():
            output: Floats = module(x).numpy()
        return output

    return run


PEER = Peer("torch-eager", ("torch",), _load)
