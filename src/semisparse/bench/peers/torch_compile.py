"""PyTorch compiled with Inductor, channels last. For orientation."""

from __future__ import annotations

from collections.abc import Callable

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import torch

    torch.set_num_threads(threads)
    # The thread count is compiled into the code, which would be taken from the cache otherwise.
    torch.compiler.reset()  # type: ignore[no-untyped-call]
    eager = model.module().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = torch.compile(eager)
    x = torch.from_numpy(model.x).to(memory_format=torch.channels_last)

    def run() -> Floats:
        with torch.inference_mode():
            output: Floats = module(x).numpy()
        return output

    return run


PEER = Peer("torch-compile", ("torch",), _load)
