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
from semisparse.training.calibrate import kept_statistics, recalibrate, run, statistics_of
from semisparse.tune.cache import Cache
from semisparse.tune.table import Option, Unit

# Of how costs are measured; kept ones of another are measured again.
VERSION = "2"


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
    """What the costs depend on, beside how `measure` takes them."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    # Which layers are open is no matter of what they cost.
    kept = dataclasses.replace(config, skip=())
    return {
        "version": VERSION,
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

    With batch norm recalibrated where they diverge less then, which is how `apply` leaves a model:
    of inverted residuals with the fill `mean` the masks that this chooses for 1.27x move the
    outputs by 0.10 and 0.07 nats (two networks), those of untouched costs by 0.13 and 0.14.

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
    dense: _Dense | None = None
    for done, (unit, option) in enumerate(candidates):
        progress(done, len(candidates))
        name = f"{' '.join(option.layers)} {option.block} {option.sparsity:g}"
        if name not in cache:
            dense = dense or _Dense(model, images, config)
            cache[name] = dense.cost(option)
        costs[unit.name, option] = cache[name]
    progress(len(candidates), len(candidates))
    return costs


class _Dense:
    """A model without masks, and what those of options change."""

    def __init__(self, model: nn.Module, images: Tensor, config: SparsityConfig) -> None:
        self._model, self._images, self._config = model, images, config
        self._outputs = run(model, images)
        self._seen = statistics_of(model, images)
        self._importance: Importance | None = None
        if config.importance:
            self._importance = measure_importance(model, images, config.fill)

    def cost(self, option: Option) -> float:
        """The divergence by it, after which the model is as it was."""
        alone = SparsityConfig(
            option.sparsity,
            only=option.layers,
            fill=self._config.fill,
            block=option.block,
            masks=self._config.masks,
            importance=self._config.importance,
            seed=self._config.seed,
        )
        device = next(self._model.parameters()).device
        example = self._images[:1].to(device)
        sparsifier = Sparsifier(self._model, example, alone, 1, self._importance)
        try:
            sparsifier.freeze()
            cost = self._divergence()
            if self._seen:
                with kept_statistics(self._model):
                    recalibrate(self._model, self._images, before=self._seen)
                    cost = min(cost, self._divergence())
            return cost
        finally:
            sparsifier.detach()

    def _divergence(self) -> float:
        return Change.between(run(self._model, self._images), self._outputs).divergence
