"""The method over a whole training run: draw, schedule, select, freeze."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from semisparse.blue_noise import blue_noise_score
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MaskError, ModelError
from semisparse.importance import Importance, check_importance, weigh
from semisparse.layers import MaskedLayer, attach, detach
from semisparse.masks import (
    can_mask,
    check_mask,
    mask_from_score,
    propagate,
    sources_of,
    sparsity_of,
    take_turn,
)
from semisparse.region import on_plane
from semisparse.rules import LayerRule, layer_rules
from semisparse.schedules import progress_at, sparsity_at
from semisparse.selection import Selection
from semisparse.trace import PlaneLayer, trace

STATE_VERSION = 1
# The exporter finds the configuration of a masked model under this name.
_CONFIG_ATTRIBUTE = "semisparse_config"

ExampleInput = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class Sparsifier:
    """Masks a model's convolutions and trains the masks in with it (arXiv 2309.06626, section 3).

    Per training step: :meth:`step`, then forward, backward and optimizer, then :meth:`observe`.
    From the schedule's end on, by default the first step, or from :meth:`freeze`, the best draw is
    fixed at the final sparsity. Outside of the configuration's region, if it has one, layers are
    masked at once.

    The model runs once on the example input, in eval mode and without gradients, to learn the
    sizes of its planes; its parameters, buffers, training flags and the random state stay as they
    were. Layers that this run does not call stay dense, and so does a layer too small for any
    block of its plane to be masked at its sparsity. While attached, the model carries its
    configuration as the attribute ``semisparse_config``.

    Under ``torch.distributed`` every rank draws the same masks, because they depend on nothing but
    the seed, and picks the same ones, because losses are averaged over the ranks; so every rank
    has to call :meth:`observe` equally often.

    Args:
        model: any module with Conv2d layers, or Linear layers that are called on ``[N, H, W, C]``;
            changed in place.
        example_input: a tensor ``[N, C, H, W]``, or a tuple or mapping of arguments. The score
            maps have the height and width of the first tensor that has both.
        config: what to mask, how much, and when.
        total_steps: how often :meth:`step` will be called in the whole training.
        importance: what :func:`semisparse.importance.measure` found, the same on every rank, where
            the configuration has an importance; it may also be set later, as the attribute of that
            name, or come with :meth:`load_state_dict`, but before masks are drawn. Planes that are
            not in it have positions that are all alike.

    Raises:
        ConfigError: if a rule matches nothing or ``total_steps`` is not positive.
        ModelError: if there is nothing to mask, the example does not run, a layer is called at
            two output sizes, or one is masked already.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: ExampleInput,
        config: SparsityConfig,
        total_steps: int,
        importance: Importance | None = None,
    ) -> None:
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ConfigError(f"total_steps must be a positive whole number, got {total_steps!r}.")
        self.importance = importance
        if hasattr(model, _CONFIG_ATTRIBUTE):
            raise ModelError("the model has a Sparsifier already; detach that one first.")
        layers = {n: m for n, m in model.named_modules() if isinstance(m, PlaneLayer)}
        args, kwargs = _arguments(example_input)
        self._score_size = _input_size(itertools.chain(args, kwargs.values()))
        traced = trace(model, layers, args, kwargs)
        # Rules do not speak of linear layers that are not on planes, such as classifiers.
        convolutions = {
            n: m for n, m in layers.items() if isinstance(m, nn.Conv2d) or traced[n].planes
        }
        if not convolutions:
            raise ModelError("the model has no convolution, so there is nothing to mask.")
        rules = layer_rules(config, convolutions, traced)
        planes: dict[str, tuple[int, int]] = {}
        for name, rule in rules.items():
            sizes = traced[name].planes
            if (rule.sparsity == 0 and not rule.region) or not sizes:
                continue
            if len(sizes) > 1:
                listed = " and ".join(f"{h}x{w}" for h, w in sorted(sizes))
                raise ModelError(
                    f"{name} is called at several output sizes, {listed}, but can have one mask "
                    "only; put it in skip."
                )
            ((height, width),) = sizes
            inside = _inside(config, rule, height, width)
            if can_mask(rule.sparsity, height, width, rule.block, inside):
                planes[name] = (height, width)
        self._rules = {name: rules[name] for name in planes}
        if not self._rules:
            raise ModelError(
                f"none of the model's {len(convolutions)} convolutions is masked: all are skipped, "
                "not called on the example input, too small for their sparsity and block, or inside "
                "of the region; change skip, per_layer, sparsity, block or region."
            )
        with contextlib.ExitStack() as undo:
            for name, rule in self._rules.items():
                attach(convolutions[name], *planes[name], rule.fill, name)
                undo.callback(detach, convolutions[name])
            undo.pop_all()
        setattr(model, _CONFIG_ATTRIBUTE, config.to_json())

        self._model = model
        self._layers = {name: cast(MaskedLayer, convolutions[name]) for name in planes}
        self.config = config
        self.total_steps = total_steps
        self._steps = 0
        self._sparsity = config.initial
        self._frozen = False
        self._generator = torch.Generator().manual_seed(config.seed)
        self._selection = Selection(config.selection)
        if config.region:
            self._mask_by(None)

    @property
    def importance(self) -> Importance | None:
        """How much the positions of the planes matter; None where that has not been measured."""
        return self._importance

    @importance.setter
    def importance(self, value: Importance | None) -> None:
        if value is not None:
            value = {plane: values.cpu() for plane, values in value.items()}
            check_importance(value)
        self._importance = value

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the masks by layer name: bool ``[H_out, W_out]`` on the CPU, True = computed."""
        return {name: layer.mask.to("cpu", copy=True) for name, layer in self._layers.items()}

    @property
    def sparsities(self) -> dict[str, float]:
        """Fraction of masked positions by layer name, as the masks are now."""
        return {name: sparsity_of(mask) for name, mask in self.masks.items()}

    @property
    def sparsity(self) -> float:
        """What the schedule asks of layers without a sparsity of their own, as of the last draw."""
        return self._sparsity

    @property
    def frozen(self) -> bool:
        """Whether the masks are fixed."""
        return self._frozen

    def step(self) -> None:
        """Advance the schedule by one training step; call it before the forward pass.

        Draws new masks every ``frequency`` steps. The first step at or past the schedule's end
        freezes the masks; later steps, also those beyond ``total_steps``, leave them alone.
        """
        self._check_attached()
        config = self.config
        index = self._steps
        self._steps += 1
        if self._frozen:
            return
        progress = progress_at(index, self.total_steps, begin=config.begin, end=config.end)
        if progress == 1:
            self.freeze()
        elif index % config.frequency == 0:
            self._sparsity = self._sparsity_at(progress, config.sparsity)
            if any(self._sparsity_at(progress, rule.sparsity) for rule in self._rules.values()):
                draw = self._draw()
                self._selection.draw(draw)
                self._mask_by(draw, progress)

    def observe(self, loss: Tensor | float) -> None:
        """Take in the loss of the present step; call it after :meth:`step`.

        May be called several times a step (their mean counts) or not at all. Losses that are not
        finite are left out, and so is their draw.
        """
        self._check_attached()
        if self._frozen or self.config.selection != "best_loss":
            return
        self._selection.observe(_mean_over_ranks(loss, next(iter(self._layers.values())).mask))

    def freeze(self) -> None:
        """Fix the best draw at the final sparsity; draws one if there was none. Idempotent."""
        self._check_attached()
        if self._frozen:
            return
        draw = self._selection.best()
        self._mask_by(self._draw() if draw is None else draw, progress=1)
        self._sparsity = self.config.sparsity
        self._frozen = True

    def detach(self) -> None:
        """Make the model the plain one it was, with its weights as trained. Idempotent."""
        for layer in self._layers.values():
            detach(layer)
        if self._layers:
            delattr(self._model, _CONFIG_ATTRIBUTE)
        self._layers = {}

    def state_dict(self) -> dict[str, Any]:
        """All state as tensors and plain values; ``torch.load(weights_only=True)`` reads it."""
        self._check_attached()
        return {
            "version": STATE_VERSION,
            "config": self.config.to_json(),
            "total_steps": self.total_steps,
            "score_size": list(self._score_size),
            "masks": self.masks,
            "steps": self._steps,
            "sparsity": self._sparsity,
            "frozen": self._frozen,
            "generator": self._generator.get_state(),
            "selection": self._selection.state_dict(),
            "importance": self.importance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the masks continue bit for bit.

        Raises:
            ConfigError: if the state is none, or of another configuration or training length.
            MaskError: if it is of other layers or sizes.
        """
        self._check_attached()
        # States written before there was an importance have none.
        state = {"importance": None, **state}
        self._check_state(state)
        for name, layer in self._layers.items():
            layer.set_mask(state["masks"][name])
        self._steps = state["steps"]
        self._sparsity = state["sparsity"]
        self._frozen = state["frozen"]
        self._generator.set_state(state["generator"].cpu())
        self._selection.load_state_dict(state["selection"])
        self.importance = state["importance"]

    def _check_state(self, state: Mapping[str, Any]) -> None:
        expected = self.state_dict()
        lacking = [key for key in expected if key not in state]
        if not lacking:
            lacking = [key for key in expected["selection"] if key not in state["selection"]]
        if lacking:
            raise ConfigError(
                f"this is no state of a Sparsifier: it lacks {', '.join(lacking)}; pass what "
                "Sparsifier.state_dict() returned."
            )
        if state["version"] != STATE_VERSION:
            raise ConfigError(
                f"the state has version {state['version']!r}, but this semisparse reads version "
                f"{STATE_VERSION}; read it with the release that wrote it."
            )
        theirs, ours = SparsityConfig.from_json(state["config"]).to_dict(), self.config.to_dict()
        for key in ("total_steps", "score_size"):
            theirs[key], ours[key] = state[key], expected[key]
        # Compared as JSON because the order of a mapping's rules matters.
        differences = [
            f"{key} is {theirs[key]!r:.300} there and {ours[key]!r:.300} here"
            for key in ours
            if json.dumps(theirs[key]) != json.dumps(ours[key])
        ]
        if differences:
            raise ConfigError(
                f"the state does not fit this Sparsifier: {'; '.join(differences)}; make the "
                "Sparsifier with the values of the state."
            )
        _check_masks(state["masks"], expected["masks"])

    def _check_attached(self) -> None:
        if not self._layers:
            raise ModelError("this Sparsifier is detached from its model; make a new one.")

    def _sparsity_at(self, progress: float, final: float) -> float:
        # A layer whose own final sparsity is below the initial one keeps to its own.
        initial = min(self.config.initial, final)
        return sparsity_at(progress, initial=initial, final=final, power=self.config.power)

    def _draw(self) -> Tensor:
        """What a draw of masks depends on: the shift of blue noise, or a random score map."""
        size = (2,) if self.config.masks == "blue-noise" else self._score_size
        return torch.rand(size, dtype=torch.float64, generator=self._generator)

    def _score(self, draw: Tensor, plane: torch.Size, rule: LayerRule) -> Tensor:
        height, width = plane
        if self.config.masks == "blue-noise":
            score = blue_noise_score(draw, height, width, rule.block)
        else:
            score = propagate(draw, height, width)
        if rule.turn:
            inside = _inside(self.config, rule, height, width)
            score = take_turn(score, rule.turn, rule.block, inside)
        if not self.config.importance:
            return score
        if self.importance is None:
            raise ConfigError(
                f"the configuration has importance {self.config.importance:g}, but how much the "
                "positions matter is not known here; set it to 0, mask with semisparse train or "
                "apply, or pass what semisparse.importance.measure(model, images) returns."
            )
        weights = self.importance.get((height, width), torch.ones_like(score))
        return weigh(score, weights, self.config.importance)

    def _mask_by(self, draw: Tensor | None, progress: float = 0.0) -> None:
        """Mask all layers; without a draw only what is outside of the region."""
        # Layers of one size and one rule have one mask, and most models have few sizes.
        made: dict[tuple[torch.Size, LayerRule], tuple[Tensor, tuple[Tensor, ...]]] = {}
        for name, layer in self._layers.items():
            rule, size = self._rules[name], layer.mask.shape
            if (size, rule) not in made:
                score, sparsity = torch.zeros(size, dtype=torch.float64), 0.0
                if draw is not None:
                    score = self._score(draw, size, rule)
                    sparsity = self._sparsity_at(progress, rule.sparsity)
                inside = _inside(self.config, rule, *size)
                mask = mask_from_score(score, sparsity, rule.block, inside)
                made[size, rule] = mask, sources_of(mask, rule.fill)
            layer.set_mask(*made[size, rule])


def _inside(config: SparsityConfig, rule: LayerRule, height: int, width: int) -> Tensor | None:
    """The positions of a layer's plane that its region leaves to be computed; None for all."""
    return on_plane(config.region, height, width) if rule.region else None


def _arguments(example: ExampleInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example), {}


def _input_size(inputs: Iterable[Any]) -> tuple[int, int]:
    for value in inputs:
        if isinstance(value, Tensor) and value.dim() in (3, 4):
            return _plane(value)
    raise ModelError("the example input holds no tensor [N, C, H, W]; pass one as the model takes.")


def _plane(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def _check_masks(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    for name in ours.keys() ^ theirs.keys():
        where, other = ("here", "there") if name in ours else ("there", "here")
        raise MaskError(
            f"the state does not fit this model: {name} is masked {where} but not {other}; restore "
            "it into the model and configuration that it came from."
        )
    for name, mask in theirs.items():
        check_mask(mask)
        if mask.shape != ours[name].shape:
            raise MaskError(
                f"the state does not fit this model: the mask of {name} is {list(mask.shape)} "
                f"there and {list(ours[name].shape)} here; use the input size of the state."
            )


def _mean_over_ranks(loss: Tensor | float, mask: Tensor) -> float:
    value = torch.as_tensor(loss).detach()
    if value.numel() != 1:
        raise ConfigError(
            f"observe() takes one loss, got a tensor of shape {list(value.shape)}; reduce it, for "
            "example with loss.mean()."
        )
    if not (distributed.is_available() and distributed.is_initialized()):
        return float(value)
    # A copy, because the reduction is in place; there, because NCCL reduces on its devices only.
    total = value.to(mask.device, torch.float64, copy=True)
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()
