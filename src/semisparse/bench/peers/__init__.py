"""Other engines that run the same dense model, one file each.

Adding one is a file with a `PEER` and its line in the list below.
"""

from __future__ import annotations

from semisparse.bench.peers import (
    ncnn,
    onnxruntime,
    openvino,
    torch_compile,
    torch_eager,
    xnnpack,
)
from semisparse.bench.peers.peer import Peer

PEERS: dict[str, Peer] = {
    module.PEER.name: module.PEER
    for module in (onnxruntime, openvino, xnnpack, ncnn, torch_eager, torch_compile)
}

__all__ = ["PEERS", "Peer"]
