"""XNNPACK through ExecuTorch, float32, with batch norm folded by its own passes."""

from __future__ import annotations

import gc
from collections.abc import Callable

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer
from semisparse.files import writing


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import torch
    from executorch.extension.pybindings import portable_lib

    program = model.folder / "xnnpack.pte"
    if not program.exists():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        x = torch.from_numpy(model.x)
        lowered = to_edge_transform_and_lower(
            torch.export.export(model.module(), (x,)), partitioner=[XnnpackPartitioner()]
        )
        with writing(program) as path:
            path.write_bytes(lowered.to_executorch().buffer)

    # The pool belongs to the process. It may be replaced only while no program holds it.
    gc.collect()
    portable_lib._unsafe_reset_threadpool(threads)
    loaded = portable_lib._load_for_executorch(str(program))
    x = torch.from_numpy(model.x)

    def run() -> Floats:
        output: Floats = loaded.forward([x])[0].numpy()
        return output

    return run


PEER = Peer("xnnpack", ("executorch", "torch"), _load)
