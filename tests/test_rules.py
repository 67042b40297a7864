from __future__ import annotations

import pytest
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.rules import LayerRule, layer_rules
from semisparse.trace import Traced

CONVOLUTIONS = {
    "stem": nn.Conv2d(3, 8, 3),
    "block.expand": nn.Conv2d(8, 16, 1),
    "block.depthwise": nn.Conv2d(16, 16, (3, 5), groups=16),
    "block.grouped": nn.Conv2d(16, 32, 3, groups=4),
    "block.grouped1x1": nn.Conv2d(16, 32, 1, groups=4),
    "head.conv": nn.Conv2d(32, 8, 1),
}

TRACED = {name: Traced({(16, 16)}) for name in CONVOLUTIONS}
TRACED["stem"].roles.add("stem")
TRACED["block.grouped1x1"].roles.add("block-last")
for name, number in [("expand", 1), ("depthwise", 1), ("grouped", 2), ("grouped1x1", 3)]:
    TRACED[f"block.{name}"].residual_block = number


def rules(**values: object) -> dict[str, LayerRule]:
    config = SparsityConfig(**{"sparsity": 0.5, **values})  # type: ignore[arg-type]
    return layer_rules(config, CONVOLUTIONS, TRACED)


def sparsities(**values: object) -> dict[str, float]:
    return {name: rule.sparsity for name, rule in rules(**values).items()}


@pytest.mark.parametrize(
    ("rule", "skipped"),
    [
        ("1x1", {"block.expand", "block.grouped1x1", "head.conv"}),
        ("3x5", {"block.depthwise"}),
        ("depthwise", {"block.depthwise"}),
        ("grouped", {"block.grouped", "block.grouped1x1"}),
        ("pointwise", {"block.expand", "head.conv"}),
        ("head.*", {"head.conv"}),
        ("*.grouped*", {"block.grouped", "block.grouped1x1"}),
        ("stem", {"stem"}),
        ("block-last", {"block.grouped1x1"}),
    ],
)
def test_rules_pick_by_kernel_type_and_name(rule: str, skipped: set[str]) -> None:
    found = sparsities(skip=[rule])
    assert {name for name, sparsity in found.items() if sparsity == 0} == skipped
    assert sparsities(per_layer={rule: 0.25}) == {
        name: 0.25 if name in skipped else 0.5 for name in CONVOLUTIONS
    }
    assert sparsities(only=[rule]) == {
        name: 0.5 if name in skipped else 0.0 for name in CONVOLUTIONS
    }


def test_last_rule_wins_and_skip_wins_over_all() -> None:
    found = sparsities(
        skip=["head.*"], per_layer={"*": 0.1, "block.*": 0.2, "depthwise": 0, "head.conv": 0.3}
    )
    assert found == {
        "stem": 0.1,
        "block.expand": 0.2,
        "block.depthwise": 0.0,
        "block.grouped": 0.2,
        "block.grouped1x1": 0.2,
        "head.conv": 0.0,
    }


def test_per_layer_adds_to_only_and_skip_takes_away() -> None:
    found = sparsities(only=["block-last", "head.*"], per_layer={"stem": 0.1}, skip=["head.*"])
    assert {name: sparsity for name, sparsity in found.items() if sparsity} == {
        "stem": 0.1,
        "block.grouped1x1": 0.5,
    }


def test_fill_per_layer() -> None:
    found = rules(fill="bias", per_layer_fill={"block.*": "nearest"})
    assert found["stem"] == LayerRule(0.5, "bias", 1)
    assert found["block.expand"] == LayerRule(0.5, "nearest", 1)


def test_block_per_layer() -> None:
    found = rules(block=4, per_layer_block={"1x1": 1, "head.*": 2})
    assert {name: rule.block for name, rule in found.items()} == {
        "stem": 4,
        "block.expand": 1,
        "block.depthwise": 4,
        "block.grouped": 4,
        "block.grouped1x1": 1,
        "head.conv": 2,
    }


def test_residual_blocks_have_turns_by_their_order() -> None:
    assert not any(rule.turn for rule in rules().values())
    assert {name: rule.turn for name, rule in rules(alternate=True).items()} == {
        "stem": 0,
        "block.expand": 0,
        "block.depthwise": 0,
        "block.grouped": 1,
        "block.grouped1x1": 2,
        "head.conv": 0,
    }


def test_a_region_is_for_all_layers_that_are_not_skipped() -> None:
    found = rules(only=["block.*"], per_layer={"stem": 0}, skip=["head.*"], region=["#."])
    assert {name: rule.region for name, rule in found.items()} == {
        name: name != "head.conv" for name in found
    }
    assert not any(rule.region for rule in rules().values())


def test_automatic_blocks_are_those_of_the_kernels() -> None:
    convolutions = {
        "wide": nn.Conv2d(16, 16, 3),
        "strided": nn.Conv2d(16, 16, 3, stride=2),
        "pointwise": nn.Conv2d(16, 16, 1),
        "uncalled": nn.Conv2d(16, 16, 3),
    }
    for side, own in [(16, 4), (8, 2)]:
        traced = {name: Traced({(side, 40)}) for name in convolutions}
        traced["uncalled"] = Traced()
        config = SparsityConfig(sparsity=0.5, block="auto", per_layer_block={"pointwise": 3})
        blocks = {n: r.block for n, r in layer_rules(config, convolutions, traced).items()}
        assert blocks == {"wide": own, "strided": 1, "pointwise": 3, "uncalled": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"skip": ["5x5"]}, r"'5x5' in skip .* its kernel sizes are 1x1, 3x3, 3x5"),
        ({"skip": ["head"]}, r"write 'head\.\*'"),
        ({"skip": ["depthwse"]}, "nearest are 'depthwise'"),
        ({"per_layer": {"hed.conv": 0.1}}, "in per_layer .* nearest are 'head.conv'"),
        ({"only": ["shortcut"]}, "'shortcut' in only .* remove the rule"),
        ({"per_layer_fill": {"@@@": "bias"}}, "in per_layer_fill"),
        ({"per_layer_block": {"@@@": 4}}, "in per_layer_block"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sparsities(**values)


def test_a_type_that_the_model_lacks_is_refused() -> None:
    config = SparsityConfig(sparsity=0.5, skip=["depthwise"])
    with pytest.raises(ConfigError, match="remove the rule"):
        layer_rules(config, {"stem": CONVOLUTIONS["stem"]}, TRACED)
