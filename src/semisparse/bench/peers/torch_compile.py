"""PyTorch compiled with Inductor, channels last. For orientation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import torch

    torch.set_num_threads(threads)
    # The thread count is compiled into the code, which would be taken from the cache otherwise.
    torch.compiler.reset()
    eager = model.module().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module: Any = torch.compile(eager)
    x = torch.from_numpy(model.x).to(memory_format=torch.channels_last)

    def run() -> Floats:
        with torch.inference_mode():
            output: Floats = module(x).numpy()
        return output

    return run


PEER = Peer("torch-compile", ("torch",), _load)
