"""Which convolutions of a model a configuration masks, how sparse, with which fill and blocks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from semisparse.blocks import natural_block
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.trace import ROLES, PlaneLayer, Traced

_KERNEL_SIZE = re.compile(r"(\d+)x(\d+)")
_TYPES: dict[str, Callable[[PlaneLayer], bool]] = {
    "depthwise": lambda layer: (
        isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels
    ),
    "grouped": lambda layer: isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels,
    "pointwise": lambda layer: _kernel_size(layer) == (1, 1) and getattr(layer, "groups", 1) == 1,
    "linear": lambda layer: isinstance(layer, nn.Linear),
}


@dataclass(frozen=True)
class LayerRule:
    """What a layer ends up with: its final sparsity, within the region if there is one, fill and
    block, its turn where residual blocks take turns, and whether it is masked outside of the region.
    """

    sparsity: float
    fill: str
    block: int
    turn: int = 0
    region: bool = False


def layer_rules(
    config: SparsityConfig,
    convolutions: Mapping[str, PlaneLayer],
    traced: Mapping[str, Traced],
) -> dict[str, LayerRule]:
    """Apply a configuration's rules to a model's convolutions.

    A rule that reads ``HxW`` is a kernel size; ``depthwise`` (one group per input channel),
    ``grouped`` (several groups, not depthwise), ``pointwise`` (1x1, one group) and ``linear`` (a
    linear layer of a plane's channels, also ``1x1`` and ``pointwise``) are types;
    ``stem``, ``block-last`` and ``shortcut`` are roles; any other is a glob for the whole name.
    ``skip`` wins over ``per_layer``, that over ``only``, and within a mapping the last matching
    rule wins.

    Args:
        config: the rules.
        convolutions: by name, linear layers on planes among them.
        traced: of the same names, for roles, residual blocks and, where a block is ``"auto"``,
            planes.

    Raises:
        ConfigError: if a rule matches no convolution.
    """

    def matches(rule: str, where: str) -> list[str]:
        return _matches(rule, where, convolutions, traced)

    def last_match(default: Any, per_layer: Mapping[str, Any], where: str) -> dict[str, Any]:
        values = dict.fromkeys(convolutions, default)
        for rule, value in per_layer.items():
            values.update(dict.fromkeys(matches(rule, where), value))
        return values

    only = dict.fromkeys(config.only, config.sparsity)
    sparsities = last_match(0.0 if only else config.sparsity, only, "only")
    sparsities.update(
        (name, sparsity)
        for rule, sparsity in config.per_layer.items()
        for name in matches(rule, "per_layer")
    )
    skipped = {name for rule in config.skip for name in matches(rule, "skip")}
    sparsities.update(dict.fromkeys(skipped, 0.0))
    fills = last_match(config.fill, config.per_layer_fill, "per_layer_fill")
    blocks = last_match(config.block, config.per_layer_block, "per_layer_block")
    return {
        name: LayerRule(
            sparsities[name],
            fills[name],
            _block_of(layer, traced[name]) if blocks[name] == "auto" else blocks[name],
            turn=max(0, traced[name].residual_block - 1) if config.alternate else 0,
            region=bool(config.region) and name not in skipped,
        )
        for name, layer in convolutions.items()
    }


def _kernel_size(layer: PlaneLayer) -> tuple[int, ...]:
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else (1, 1)


def _block_of(layer: PlaneLayer, traced: Traced) -> int:
    if isinstance(layer, nn.Linear):
        return 1
    sides = [
        natural_block(
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            layer.groups,
            layer.in_channels,
            layer.out_channels,
            *plane,
        )
        for plane in traced.planes
    ]
    return min(sides, default=1)


def _matches(
    rule: str, where: str, convolutions: Mapping[str, PlaneLayer], traced: Mapping[str, Traced]
) -> list[str]:
    size = _KERNEL_SIZE.fullmatch(rule)
    if size is not None:
        kernel = (int(size[1]), int(size[2]))
        names = [name for name, layer in convolutions.items() if _kernel_size(layer) == kernel]
    elif rule in _TYPES:
        names = [name for name, layer in convolutions.items() if _TYPES[rule](layer)]
    elif rule in ROLES:
        names = [name for name in convolutions if rule in traced[name].roles]
    else:
        names = [name for name in convolutions if fnmatchcase(name, rule)]
    if not names:
        hint = _hint(rule, convolutions)
        raise ConfigError(
            f"the rule {rule!r} in {where} matches no convolution of the model; {hint}."
        )
    return names


def _hint(rule: str, convolutions: Mapping[str, PlaneLayer]) -> str:
    if _KERNEL_SIZE.fullmatch(rule):
        sizes = sorted(
            "{}x{}".format(*size) for size in set(map(_kernel_size, convolutions.values()))
        )
        return f"its kernel sizes are {', '.join(sizes)}"
    if rule in _TYPES or rule in ROLES:
        return "remove the rule"
    if any(name.startswith(f"{rule}.") for name in convolutions):
        return f"to match all layers of that module write {rule + '.*'!r}"
    known = [*convolutions, *_TYPES, *ROLES]
    close = difflib.get_close_matches(rule, known, n=3) or known[:3]
    return f"the nearest are {', '.join(map(repr, close))}"
