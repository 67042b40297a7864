"""What is timed: one dense model, and what `export_onnx` makes of it at each sparsity and fill.

All files of a model have the same weights, and lie in a cache folder whose name tells the settings.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import semisparse
from semisparse.bench.work import DOMAIN, Work, inlined, name_layers, read, work_of
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, FileFormatError, MissingExtraError, ModelError
from semisparse.files import writing
from semisparse.image_size import AnySize, ImageSize

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]

_SEED = 0
_CLASSES = 1000
_WRITERS = (
    "bench/models.py",
    "bench/work.py",
    "blue_noise.py",
    "export/*.py",
    "layers.py",
    "masks.py",
    "ops.py",
    "region.py",
    "rules.py",
    "sparsifier.py",
    "trace.py",
    "training/models.py",
    "training/resnet.py",
)


@dataclass(frozen=True)
class Variant:
    """One exported file.

    Attributes:
        sparsity: as asked for; None for a file that came from outside.
        fill: of the masked positions; None for a dense file, or one from outside.
        block: side of the squares that are masked as a whole, or "auto"; None likewise.
        chains: "fused", or "separate" convolutions; None for a file from outside.
        region: masked outside of a region, within which the sparsity counts.
        path: of the file.
        expected: output of `Model.x`.
        work: what the file computes.
    """

    sparsity: float | None
    fill: str | None
    block: int | str | None
    chains: str | None
    region: bool
    path: Path
    expected: Floats
    work: Work

    @property
    def name(self) -> str:
        """As in the tables."""
        if self.sparsity is None:
            return "semisparse"
        words = ["semisparse", f"{self.sparsity:g}"]
        if self.region:
            words.append("in region")
        if self.fill is not None:
            words.append(self.fill)
        if self.block not in (None, 1):
            words.append(f"block {self.block}")
        if self.chains == "separate":
            words.append("separate")
        return " ".join(words)


@dataclass(frozen=True)
class Model:
    """A model in every form that is timed.

    Attributes:
        name: as asked for.
        folder: for the files that peers convert the model into.
        x: input [1, C, H, W].
        dense: the model in standard operators, for peers that read ONNX.
        expected: the dense model's output of `x`.
        work: what the dense model computes.
        variants: ours.
        module: makes the torch model, in evaluation mode. Raises ModelError if there is none.
    """

    name: str
    folder: Path
    x: Floats
    dense: Path
    expected: Floats
    work: Work
    variants: tuple[Variant, ...]
    module: Callable[[], nn.Module]


def prepare(
    name: str,
    cache: Path,
    *,
    sparsities: Sequence[float],
    fills: Sequence[str],
    blocks: Sequence[int | str] = (1,),
    chains: Sequence[str] = ("fused",),
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    alternate: bool = False,
    region: Sequence[str] = (),
    image_size: AnySize = 224,
    progress: Callable[[str], object] = lambda what: None,
) -> Model:
    """The model of a name, or of an exported file.

    Args:
        name: `torchvision/NAME` (or only `NAME`), `timm/NAME`, or the path of an exported .onnx.
            Networks of timm that are trained in branches are merged, for the peers too, which
            have no pass for that.
        cache: folder that keeps what is made; everything that decides a file is in its path.
        sparsities: in [0, 1); 0 is the dense model, exported as the sparse ones are.
        fills: of every sparsity above 0.
        blocks: of every fill.
        chains: of all of these, "fused" or "separate": see `export_onnx`.
        skip: rules of `SparsityConfig` for layers to leave dense.
        only: rules for those to mask; none for all.
        alternate: residual blocks take turns, as in `SparsityConfig`.
        region: of `SparsityConfig`, for all but the dense model. With one, sparsity 0 is that model
            and also the one that is masked outside of the region only.
        image_size: of the input: a side, or height and width.
        progress: called with what is being made.

    Raises:
        ConfigError: a setting is out of range.
        FileFormatError: the file is not one of ours, or has several inputs.
        MissingExtraError: a model by name needs an extra that is not installed.
        ModelError: the name is unknown, or the model cannot be masked so.
    """
    if name.endswith(".onnx") and region:
        raise ConfigError(f"{name} has its own masks; give a region with models by name only.")
    if name.endswith(".onnx"):
        return _from_file(Path(name), cache, progress)
    size = ImageSize.of(image_size)
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ConfigError(f"Sparsity {sparsity} is out of range; give values in [0, 1).")
    configs: list[SparsityConfig | None] = []
    for sparsity in sparsities:
        if sparsity == 0:
            configs.append(None)
        if sparsity == 0 and not region:
            continue
        for fill, block in product(fills, blocks):
            configs.append(
                SparsityConfig(
                    sparsity,
                    skip=tuple(skip),
                    only=tuple(only),
                    alternate=alternate,
                    fill=fill,
                    block=block,
                    region=tuple(region),
                )
            )
    return _from_name(name, cache, list(product(configs, chains)), size, progress)


def _from_name(
    name: str,
    cache: Path,
    files: Sequence[tuple[SparsityConfig | None, str]],
    size: ImageSize,
    progress: Callable[[str], object],
) -> Model:
    try:
        import torch

        from semisparse.export import export_onnx
        from semisparse.sparsifier import Sparsifier
        from semisparse.training.models import create, full_name
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Timing {name} by name needs {error.name}, which is not installed; "
            "run pip install 'semisparse[bench]', or give an exported .onnx file."
        ) from error

    full = full_name(name)

    def module() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            made = create(full, _CLASSES).eval()
        if full.startswith("timm/"):
            from timm.utils.model import reparameterize_model

            made = reparameterize_model(made)
        return made

    def output(model: nn.Module) -> Floats:
        with torch.inference_mode():
            result: Floats = model(torch.from_numpy(x)).numpy()
        return result

    def export_dense(path: Path) -> None:
        progress(f"exporting {name} in standard operators")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Batch norm is folded by the exporter, and the batch is fixed: the peers' best case.
            torch.onnx.export(
                model,
                (torch.from_numpy(x),),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        name_layers(path)

    def variant(config: SparsityConfig | None, chains: str) -> Variant:
        settings = f"{config.to_json() if config else 'dense'} {chains}"
        path = folder / f"semisparse-{_digest(settings.encode())}.onnx"
        sparsifier = Sparsifier(model, torch.from_numpy(x), config, 1) if config else None
        if sparsifier is not None:
            sparsifier.freeze()
        try:
            if not path.exists():
                progress(f"exporting {name} at sparsity {config.sparsity if config else 0:g}")
                export_onnx(
                    model, torch.from_numpy(x), path, verify=False, chains=chains == "fused"
                )
            expected = output(model)
        finally:
            if sparsifier is not None:
                sparsifier.detach()
        work = work_of(read(path))
        if config is None:
            return Variant(0.0, None, None, chains, False, path, expected, work)
        region = bool(config.region)
        kind = (config.sparsity, config.fill, config.block, chains, region)
        return Variant(*kind, path, expected, work)

    settings = {
        "model": full,
        "image_size": size,
        "classes": _CLASSES,
        "seed": _SEED,
        "torch": version("torch"),
        "sources": _sources(),
    }
    folder = cache / f"{_slug(name)}-{size}-{_digest(json.dumps(settings).encode())}"
    x = np.random.default_rng(_SEED).standard_normal((1, 3, *size)).astype(np.float32)
    model = module()
    dense = folder / "dense.onnx"
    if not dense.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with writing(dense) as draft:
            export_dense(draft)
    variants = tuple(variant(config, chains) for config, chains in files)
    return Model(name, folder, x, dense, output(model), work_of(read(dense)), variants, module)


def _from_file(path: Path, cache: Path, progress: Callable[[str], object]) -> Model:
    from semisparse.feeds import random_feeds
    from semisparse.runtime import InferenceSession

    def module() -> nn.Module:
        raise ModelError(f"it needs the torch model, and {path} is an exported file")

    session = InferenceSession(path, library=False)
    proto = read(path)
    if not any(node.domain == DOMAIN for node in proto.graph.node):
        raise FileFormatError(
            f"{path} has no operator of semisparse; give a file that semisparse exported."
        )
    if len(session.get_inputs()) != 1:
        raise FileFormatError(
            f"{path} has {len(session.get_inputs())} inputs; only models of one input are timed."
        )
    folder = cache / f"{_slug(path.stem)}-{_digest(path.read_bytes())}"
    dense = folder / "portable.onnx"
    if not dense.exists():
        progress(f"writing {path} in standard operators")
        folder.mkdir(parents=True, exist_ok=True)
        with writing(dense) as draft:
            draft.write_bytes(inlined(proto).SerializeToString())
    (x,) = random_feeds(session, _SEED).values()
    expected: Floats = session.run(None, {session.get_inputs()[0].name: x})[0]
    work = work_of(proto)
    variant = Variant(None, None, None, None, False, path, expected, work)
    return Model(str(path), folder, x, dense, expected, work.dense(), (variant,), module)


def _sources() -> str:
    """Digest of the sources that decide what the files hold, so that no stale one is timed."""
    files = sorted(
        path
        for root in semisparse.__path__
        for pattern in _WRITERS
        for path in Path(root).glob(pattern)
    )
    return _digest(b"\0".join(path.read_bytes() for path in files))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
