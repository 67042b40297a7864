"""Which convolutions of a model a configuration masks, how sparse, with which fill and blocks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

_KERNEL_SIZE = re.compile(r"(\d+)x(\d+)")
_TYPES: dict[str, Callable[[nn.Conv2d], bool]] = {
    "depthwise": lambda conv: 1 < conv.groups == conv.in_channels,
    "grouped": lambda conv: 1 < conv.groups < conv.in_channels,
    "pointwise": lambda conv: tuple(conv.kernel_size) == (1, 1) and conv.groups == 1,
}


@dataclass(frozen=True)
class LayerRule:
    """What a layer ends up with: its final sparsity, 0 where it stays dense, fill and block."""

    sparsity: float
    fill: str
    block: int


def layer_rules(
    config: SparsityConfig, convolutions: Mapping[str, nn.Conv2d]
) -> dict[str, LayerRule]:
    """Apply a configuration's rules to a model's convolutions.

    A rule that reads ``HxW`` is a kernel size; ``depthwise`` (one group per input channel),
    ``grouped`` (several groups, not depthwise) and ``pointwise`` (1x1, one group) are types; any
    other is a glob for the whole name. ``skip`` wins over ``per_layer``, and within a mapping the
    last matching rule wins.

    Raises:
        ConfigError: if a rule matches no convolution.
    """
    sparsities = dict.fromkeys(convolutions, config.sparsity)
    for rule, sparsity in config.per_layer.items():
        sparsities.update(dict.fromkeys(_matches(rule, convolutions, "per_layer"), sparsity))
    for rule in config.skip:
        sparsities.update(dict.fromkeys(_matches(rule, convolutions, "skip"), 0.0))
    fills = dict.fromkeys(convolutions, config.fill)
    for rule, fill in config.per_layer_fill.items():
        fills.update(dict.fromkeys(_matches(rule, convolutions, "per_layer_fill"), fill))
    blocks = dict.fromkeys(convolutions, config.block)
    for rule, block in config.per_layer_block.items():
        blocks.update(dict.fromkeys(_matches(rule, convolutions, "per_layer_block"), block))
    return {name: LayerRule(sparsities[name], fills[name], blocks[name]) for name in convolutions}


def _matches(rule: str, convolutions: Mapping[str, nn.Conv2d], where: str) -> list[str]:
    size = _KERNEL_SIZE.fullmatch(rule)
    if size is not None:
        kernel = (int(size[1]), int(size[2]))
        names = [name for name, c in convolutions.items() if tuple(c.kernel_size) == kernel]
    elif rule in _TYPES:
        names = [name for name, conv in convolutions.items() if _TYPES[rule](conv)]
    else:
        names = [name for name in convolutions if fnmatchcase(name, rule)]
    if not names:
        hint = _hint(rule, convolutions)
        raise ConfigError(
            f"the rule {rule!r} in {where} matches no convolution of the model; {hint}."
        )
    return names


def _hint(rule: str, convolutions: Mapping[str, nn.Conv2d]) -> str:
    if _KERNEL_SIZE.fullmatch(rule):
        sizes = sorted({f"{c.kernel_size[0]}x{c.kernel_size[1]}" for c in convolutions.values()})
        return f"its kernel sizes are {', '.join(sizes)}"
    if rule in _TYPES:
        return "remove the rule"
    if any(name.startswith(f"{rule}.") for name in convolutions):
        return f"to match all layers of that module write {rule + '.*'!r}"
    known = [*convolutions, *_TYPES]
    close = difflib.get_close_matches(rule, known, n=3) or known[:3]
    return f"the nearest are {', '.join(map(repr, close))}"
