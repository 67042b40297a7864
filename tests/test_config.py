from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

rules = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0, 0.99), max_size=4)
blocks = st.integers(1, 64) | st.just("auto")
configs = (st.just(0.0) | st.floats(0.01, 0.99)).flatmap(
    lambda sparsity: st.builds(
        SparsityConfig,
        sparsity=st.just(sparsity),
        skip=st.lists(st.text(min_size=1), max_size=3),
        only=st.lists(st.text(min_size=1), max_size=3),
        per_layer=rules,
        fill=st.sampled_from(["bias", "nearest", "mean"]),
        per_layer_fill=st.dictionaries(
            st.text(min_size=1), st.sampled_from(["bias", "mean"]), max_size=3
        ),
        block=blocks,
        per_layer_block=st.dictionaries(st.text(min_size=1), blocks, max_size=3),
        masks=st.sampled_from(["blue-noise", "random"]),
        alternate=st.booleans(),
        region=st.sampled_from([("#",), ["##.", ".#."], *([()] if sparsity else [])]),
        initial=st.floats(0, sparsity),
        begin=st.floats(0, 0.5),
        end=st.floats(0.5, 1),
        power=st.floats(0.1, 9),
        frequency=st.integers(1, 1000),
        selection=st.sampled_from(["best_loss", "last", "first"]),
        seed=st.integers(0, 2**63 - 1),
    )
)


@given(configs)
def test_json_round_trip_is_exact(config: SparsityConfig) -> None:
    again = SparsityConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert list(again.per_layer.items()) == list(config.per_layer.items())
    assert SparsityConfig.from_dict(config.to_dict()) == config


def test_json_form_is_versioned_and_plain() -> None:
    values = json.loads(SparsityConfig(sparsity=0.2, skip=["1x1"]).to_json())
    assert values["version"] == 2
    assert values["skip"] == ["1x1"]
    assert values["fill"] == "nearest"


def test_forms_of_version_1_mean_what_they_meant() -> None:
    assert SparsityConfig.from_dict({"version": 1, "sparsity": 0.2}) == SparsityConfig(
        sparsity=0.2, fill="nearest", block=1, masks="random", begin=0.1, end=0.9
    )
    assert SparsityConfig.from_dict({"version": 1, "sparsity": 0.2, "end": 0.5}).end == 0.5
    assert SparsityConfig.from_dict({"version": 2, "sparsity": 0.2}) == SparsityConfig(0.2)


def test_a_region_masks_at_sparsity_0() -> None:
    assert SparsityConfig.from_dict({"version": 2, "region": ["#."]}) == SparsityConfig(
        0, region=["#."]
    )
    with pytest.raises(ConfigError, match="no entry 'sparsity'"):
        SparsityConfig.from_dict({"version": 2, "region": []})


def test_masks_on_the_last_layers_of_blocks() -> None:
    config = SparsityConfig.block_last(0.5, skip=["1x1"])
    assert config == SparsityConfig(
        0.5, only=["block-last"], alternate=True, fill="mean", skip=["1x1"]
    )
    assert SparsityConfig.block_last(0.5, alternate=False).alternate is False


def test_the_method_of_the_paper() -> None:
    config = SparsityConfig.paper(0.3, skip=["1x1"], seed=4)
    assert config == SparsityConfig(
        0.3,
        skip=["1x1"],
        fill="bias",
        block=1,
        masks="random",
        alternate=False,
        begin=0.1,
        end=0.9,
        selection="best_loss",
        seed=4,
    )
    assert SparsityConfig.paper(0.3, fill="nearest").fill == "nearest"


def test_sequences_and_numbers_are_normalised() -> None:
    given_rules = {"a": 0}
    config = SparsityConfig(sparsity=Fraction(1, 4), skip=["1x1"], per_layer=given_rules)
    given_rules["b"] = 1
    assert config == SparsityConfig(sparsity=0.25, skip=("1x1",), per_layer={"a": 0.0})


def test_order_of_rules_is_part_of_the_value() -> None:
    one = SparsityConfig(sparsity=0.2, per_layer={"a*": 0.1, "*b": 0.3})
    other = SparsityConfig(sparsity=0.2, per_layer={"*b": 0.3, "a*": 0.1})
    assert one != other


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SparsityConfig(sparsity=0.2).sparsity = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 0}, "sparsity is 0 and there is no region"),
        ({"sparsity": 1}, "sparsity is 1, but must lie between 0 and 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": 1, "region": ["#"]}, "sparsity is 1"),
        ({"sparsity": float("nan")}, "finite number"),
        ({"sparsity": "0.2"}, "finite number"),
        ({"sparsity": True}, "finite number"),
        ({"sparsity": 0.2, "skip": "1x1"}, "list of rules"),
        ({"sparsity": 0.2, "skip": [3]}, "non-empty string"),
        ({"sparsity": 0.2, "skip": [""]}, "non-empty string"),
        ({"sparsity": 0.2, "only": "block-last"}, "list of rules"),
        ({"sparsity": 0.2, "masks": "white"}, "blue-noise, random"),
        ({"sparsity": 0.2, "per_layer": {"a": 1.0}}, r"per_layer\['a'\] is 1"),
        ({"sparsity": 0.2, "per_layer": ["a"]}, "must map"),
        ({"sparsity": 0.2, "per_layer": {"": 0.1}}, "non-empty string"),
        ({"sparsity": 0.2, "fill": "zero"}, "bias, nearest, mean"),
        ({"sparsity": 0.2, "per_layer_fill": {"a": "zero"}}, r"per_layer_fill\['a'\]"),
        ({"sparsity": 0.2, "block": 0}, 'block must be a whole number from 1 up or "auto", got 0'),
        ({"sparsity": 0.2, "block": "automatic"}, 'from 1 up or "auto", got'),
        ({"sparsity": 0.2, "block": 4.0}, "block must be a whole number"),
        ({"sparsity": 0.2, "block": True}, "block must be a whole number"),
        ({"sparsity": 0.2, "per_layer_block": {"a": 0}}, r"per_layer_block\['a'\]"),
        ({"sparsity": 0.2, "per_layer_block": 4}, "must map"),
        ({"sparsity": 0.2, "importance": -1}, "importance is -1, but must not be negative"),
        ({"sparsity": 0.2, "importance": "high"}, "importance must be a finite number"),
        ({"sparsity": 0.2, "alternate": 1}, "alternate must be true or false, got 1"),
        ({"sparsity": 0.2, "region": "#.#"}, "region must be a list of rows"),
        ({"sparsity": 0.2, "region": 3}, "region must be a list of rows"),
        ({"sparsity": 0.2, "region": ["#.", "#"]}, "rows of 2 and 1 characters"),
        ({"sparsity": 0.2, "region": ["#x"]}, "region has the row '#x'"),
        ({"sparsity": 0.2, "region": [""]}, "region has the row ''"),
        ({"sparsity": 0.2, "region": [1]}, "region has the row 1"),
        ({"sparsity": 0.2, "region": [None]}, "put rows in quotes"),
        ({"sparsity": 0.2, "region": ["..", ".."]}, "region has no '#'"),
        ({"sparsity": 0.2, "initial": 0.3}, "initial is 0.3"),
        ({"sparsity": 0.2, "initial": -0.1}, "initial is -0.1"),
        ({"sparsity": 0.2, "begin": 0.9, "end": 0.1}, "begin is 0.9 and end is 0.1"),
        ({"sparsity": 0.2, "end": 1.1}, "end is 1.1"),
        ({"sparsity": 0.2, "power": 0}, "power is 0"),
        ({"sparsity": 0.2, "frequency": 0}, "frequency"),
        ({"sparsity": 0.2, "frequency": 1.5}, "frequency"),
        ({"sparsity": 0.2, "selection": "best"}, "best_loss, last, first"),
        ({"sparsity": 0.2, "seed": -1}, "seed"),
        ({"sparsity": 0.2, "seed": 2**63}, "seed"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparsityConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a mapping"),
        ('{"sparsity": 0.2}', "version None"),
        ('{"version": 3, "sparsity": 0.2}', "version 3"),
        ('{"version": 1}', "no entry 'sparsity'"),
        ('{"version": 1, "sparsity": NaN}', "finite number"),
        ('{"version": 1, "sparsity": 0.2, "sead": 1}', "did you mean 'seed'"),
        ('{"version": 1, "sparsity": 0.2, "zzzz": 1}', "known entries: sparsity"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparsityConfig.from_json(text)
