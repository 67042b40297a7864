"""From a goal to masks: choose, put them on, and see what they cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.training.apply import Applied, apply
from semisparse.training.calibrate import run
from semisparse.tune.allocation import Costs, allocate, gain, largest_gain
from semisparse.tune.table import LatencyTable, Option

# Halvings of the range of latencies in which the wanted drop is looked for.
_HALVINGS = 6


@dataclass(frozen=True)
class Drop:
    """What masks cost on labelled images that they were not chosen by.

    Attributes:
        images: how many.
        accuracy: without masks, in percent.
        points: by how much the masks lower it.
        error: standard error of the points.
    """

    images: int
    accuracy: float
    points: float
    error: float


@dataclass(frozen=True)
class Masked:
    """A model with the masks of a choice.

    Attributes:
        taken: the option of each unit that is not dense, by the unit's name.
        config: by which `train`, `apply` and `export` mask so; residual blocks take turns in it
            where that changes the outputs less.
        seconds: predicted latency.
        predicted: divergence of the outputs, in nats, the sum of those of the options.
        applied: what the masks and recalibration change.
        drop: of the accuracy; None without labelled images.
        model: with the masks attached.
    """

    taken: dict[str, Option]
    config: SparsityConfig
    seconds: float
    predicted: float
    applied: Applied
    drop: Drop | None
    model: nn.Module


@dataclass(frozen=True)
class Tuner:
    """Chooses masks for a model.

    Attributes:
        model: without masks, in evaluation mode; it stays as it is.
        images: `[N, C, H, W]`, prepared as for the model; they need no labels.
        labelled: other such images, and labels `[N]`; None where there are none.
        config: whose fill, kind of masks, importance and seed count.
        table: of the model's latencies.
        costs: of the options that are open, by `sensitivity.measure`.
    """

    model: nn.Module
    images: Tensor
    labelled: tuple[Tensor, Tensor] | None
    config: SparsityConfig
    table: LatencyTable
    costs: Costs

    @property
    def shortest(self) -> float:
        """Predicted seconds with every unit at its fastest."""
        return self.table.seconds - largest_gain(self.table.units, self.costs)

    def at_latency(self, seconds: float) -> Masked:
        """The masks that change the outputs least among those predicted to be that fast.

        Raises:
            ConfigError: no masks are that fast, or none are needed.
        """
        dense, shortest = self.table.seconds, self.shortest
        if seconds >= dense:
            raise ConfigError(
                f"The model takes {dense * 1e3:.3g} ms without masks and needs none for "
                f"{seconds * 1e3:.3g} ms; give a lower latency, or a speedup above 1."
            )
        if seconds < shortest:
            raise ConfigError(
                f"{seconds * 1e3:.3g} ms ({dense / seconds:.3g}x) cannot be reached: the best is "
                f"{shortest * 1e3:.3g} ms ({dense / shortest:.3g}x), every layer at the sparsity "
                "where it is fastest; give a goal within that."
            )
        return self._mask(allocate(self.table.units, self.costs, dense - seconds))

    def at_drop(
        self, points: float, progress: Callable[[int, int], object] = lambda done, total: None
    ) -> Masked:
        """The fastest masks found that lower the accuracy by no more points than that.

        Latencies are tried by halving, and the drop is measured each time.

        Raises:
            ConfigError: there are no labelled images, or all masks that were tried cost more.
        """
        if self.labelled is None:
            raise ConfigError(
                "There is no accuracy without labels; give data that has the model's classes, or "
                "--target-speedup in place of --max-drop."
            )
        too_fast, slowest = self.shortest, self.table.seconds
        best, least = None, float("inf")
        tried = too_fast
        for step in range(_HALVINGS):
            progress(step, _HALVINGS)
            masked = self.at_latency(tried)
            assert masked.drop is not None
            least = min(least, masked.drop.points)
            if masked.drop.points > points:
                too_fast = tried
            else:
                best, slowest = masked, tried
                if step == 0:
                    break
            tried = (too_fast + slowest) / 2
        progress(_HALVINGS, _HALVINGS)
        if best is None:
            raise ConfigError(
                f"No masks lower the accuracy by at most {points:g} points: the least drop of "
                f"those that were tried is {least:.2f}; allow more, or train with masks."
            )
        return best

    def _mask(self, taken: dict[str, Option]) -> Masked:
        """With masks that take turns, or in step: what single layers cost does not tell which."""
        config = self.config_of(taken)
        configs = [replace(config, alternate=alternate) for alternate in (False, True)]
        networks = [copy.deepcopy(self.model) for _ in configs]
        tried = [
            (apply(model, self.images, config, draws=1), config, model)
            for config, model in zip(configs, networks, strict=True)
        ]
        # The first of two that are alike, so no turns where they change nothing.
        applied, config, model = min(tried, key=lambda each: each[0].change.divergence)
        units = {unit.name: unit for unit in self.table.units}
        return Masked(
            taken=taken,
            config=config,
            seconds=self.table.seconds - sum(gain(units[name], o) for name, o in taken.items()),
            predicted=sum(self.costs[choice] for choice in taken.items()),
            applied=applied,
            drop=self._drop(model),
            model=model,
        )

    def config_of(self, taken: dict[str, Option]) -> SparsityConfig:
        """What masks by these options, and leaves all other layers dense."""
        per_layer = {layer: option.sparsity for option in taken.values() for layer in option.layers}
        return SparsityConfig(
            max(per_layer.values()),
            only=tuple(per_layer),
            per_layer=per_layer,
            fill=self.config.fill,
            per_layer_block={
                layer: option.block for option in taken.values() for layer in option.layers
            },
            masks=self.config.masks,
            importance=self.config.importance,
            seed=self.config.seed,
        )

    def _drop(self, model: nn.Module) -> Drop | None:
        if self.labelled is None:
            return None
        images, labels = self.labelled
        before, after = (run(m, images).argmax(1) == labels for m in (self.model, model))
        lost = before.double() - after.double()
        return Drop(
            images=len(labels),
            accuracy=100 * float(before.double().mean()),
            points=100 * float(lost.mean()),
            error=100 * float(lost.std()) / len(labels) ** 0.5,
        )
