"""PyTorch compiled with Inductor, channels last. For orientation."""

from __future__ import annotations

from collections.abc import Callable

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer
from semisparse.bench.peers.torch_eager import runner


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import torch

    # The thread count is compiled into the code, which would be taken from the cache otherwise.
    torch.compiler.reset()
    return runner(model, threads, torch.compile)


PEER = Peer("torch-compile", ("torch",), _load)
