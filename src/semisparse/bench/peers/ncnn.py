"""ncnn, converted by pnnx, with every reduced precision off.

Its 3x3 convolutions are Winograd's, which need fewer multiplications than are counted here, so on
a machine whose limit is the FMA units its GFLOP/s may pass the measured peak.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from semisparse.bench.models import Model
from semisparse.bench.peers.peer import Floats, Peer
from semisparse.errors import ExportError
from semisparse.files import writing

_REDUCED_PRECISION = (
    "use_bf16_packed",
    "use_bf16_storage",
    "use_fp16_arithmetic",
    "use_fp16_packed",
    "use_fp16_storage",
    "use_int8_arithmetic",
    "use_int8_inference",
    "use_int8_packed",
    "use_int8_storage",
)


def _convert(model: Model, param: Path, weights: Path) -> None:
    import pnnx
    import torch

    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder, "model.pt")
        # torch has no annotations there.
        script = torch.jit.trace(model.module(), torch.from_numpy(model.x))  # type: ignore[no-untyped-call]
        script.save(str(traced))
        shape = ",".join(map(str, model.x.shape))
        done = subprocess.run(
            # 0: keep the weights in float32.
            [Path(pnnx.__file__).with_name("pnnx"), traced, f"inputshape=[{shape}]", "fp16=0"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        made = [traced.with_suffix(suffix) for suffix in (".ncnn.param", ".ncnn.bin")]
        if done.returncode != 0 or not all(path.exists() for path in made):
            raise ExportError(
                f"pnnx cannot convert {model.name} (exit status {done.returncode}): "
                f"{done.stderr.strip()[-300:]}"
            )
        for source, target in zip(made, (param, weights), strict=True):
            with writing(target) as path:
                path.write_bytes(source.read_bytes())


def _load(model: Model, threads: int) -> Callable[[], Floats]:
    import ncnn
    import numpy as np

    param, weights = model.folder / "ncnn.param", model.folder / "ncnn.bin"
    if not (param.exists() and weights.exists()):
        _convert(model, param, weights)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in _REDUCED_PRECISION:
        if hasattr(net.opt, option):
            setattr(net.opt, option, False)
    if net.load_param(str(param)) != 0 or net.load_model(str(weights)) != 0:
        raise ExportError(f"ncnn cannot load {param}; delete it to convert it again.")
    (source,), (result,) = net.input_names(), net.output_names()
    image = ncnn.Mat(model.x[0])

    def run() -> Floats:
        extractor = net.create_extractor()
        extractor.input(source, image)
        status, output = extractor.extract(result)
        if status != 0:
            raise RuntimeError(f"ncnn stopped with status {status}")
        return np.array(output)[None]

    return run


PEER = Peer("ncnn", ("ncnn", "pnnx", "torch"), _load)
