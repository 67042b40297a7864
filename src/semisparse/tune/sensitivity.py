"""What it costs to mask some layers alone: how far the model's answers move."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from semisparse.config import SparsityConfig
from semisparse.importance import Importance
from semisparse.importance import measure as measure_importance
from semisparse.sparsifier import Sparsifier
from semisparse.training.apply import Change
from semisparse.training.calibrate import run
from semisparse.tune.cache import Cache
from semisparse.tune.table import Option, Unit


def maskable(model: nn.Module, example: Tensor, config: SparsityConfig) -> frozenset[str]:
    """The layers that the configuration masks.

    Raises:
        ConfigError: a rule of it matches nothing.
        ModelError: there is none, or the model does not take the example.
    """
    sparsifier = Sparsifier(model, example, config, total_steps=1)
    names = frozenset(sparsifier.masks)
    sparsifier.detach()
    return names


def key(model: nn.Module, images: Tensor, config: SparsityConfig) -> dict[str, str]:
    """What the costs depend on."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    # Which layers are open is no matter of what they cost.
    kept = dataclasses.replace(config, skip=())
    return {
        "model": digest.hexdigest(),
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "config": kept.to_json(),
    }


def measure(
    model: nn.Module,
    images: Tensor,
    candidates: Sequence[tuple[Unit, Option]],
    config: SparsityConfig,
    cache: Cache,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[tuple[str, Option], float]:
    """How far the outputs diverge by each candidate alone, as `Change` has it.

    Args:
        model: `[N, C, H, W] -> [N, num_classes]`, without masks; it is left so.
        images: `[N, C, H, W]`, prepared as for the model.
        candidates: options, with their units.
        config: whose fill, kind of masks, importance and seed count.
        cache: keeps what is measured.
        progress: called with (candidates done, candidates in all).

    Returns:
        By the unit's name and the option, nats.
    """
    model.eval()
    costs = {}
    reference = importance = None
    for done, (unit, option) in enumerate(candidates):
        progress(done, len(candidates))
        name = f"{' '.join(option.layers)} {option.block} {option.sparsity:g}"
        if name not in cache:
            if reference is None:
                reference = run(model, images)
                if config.importance:
                    importance = measure_importance(model, images, config.fill)
            outputs = _masked_run(model, images, option, config, importance)
            cache[name] = Change.between(outputs, reference).divergence
        costs[unit.name, option] = cache[name]
    progress(len(candidates), len(candidates))
    return costs


def _masked_run(
    model: nn.Module,
    images: Tensor,
    option: Option,
    config: SparsityConfig,
    importance: Importance | None,
) -> Tensor:
    alone = SparsityConfig(
        option.sparsity,
        only=option.layers,
        fill=config.fill,
        block=option.block,
        masks=config.masks,
        importance=config.importance,
        seed=config.seed,
    )
    device = next(model.parameters()).device
    sparsifier = Sparsifier(model, images[:1].to(device), alone, 1, importance)
    try:
        sparsifier.freeze()
        return run(model, images)
    finally:
        sparsifier.detach()
