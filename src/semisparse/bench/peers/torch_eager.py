"""PyTorch, layer by layer, channels last. For orientation: it is not an inference engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer


def runner(
    model: Model, threads: int, prepare: Callable[[Any], Any] = lambda module: module
) -> Callable[[], Floats]:
    """A function that runs what `prepare` makes of the torch model, channels last, once."""
    import torch

    torch.set_num_threads(threads)
    # torch's overloads of `to` leave out a memory format alone.
    module = prepare(model.module().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    x = torch.from_numpy(model.x).to(memory_format=torch.channels_last)

    def run() -> Floats:
        with torch.inference_mode():
            output: Floats = module(x).numpy()
        return output

    return run


PEER = Peer("torch-eager", ("torch",), runner)
