"""The sparsity of each layer, chosen by measurement."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from torch import nn

from semisparse import masks
from semisparse.bench.work import work_of
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, FileFormatError
from semisparse.export import export_onnx
from semisparse.runtime import InferenceSession
from semisparse.sparsifier import Sparsifier
from semisparse.training import run, saved
from semisparse.training.apply import Change, apply
from semisparse.training.calibrate import recalibrate, statistics_of
from semisparse.training.data import calibration_images
from semisparse.training.settings import TrainSettings
from semisparse.tune import latency, sensitivity
from semisparse.tune.allocation import allocate, gain, largest_gain
from semisparse.tune.cache import Cache
from semisparse.tune.search import Tuner
from semisparse.tune.table import LatencyTable, Option, Unit
from semisparse.tune.variants import can_mask, places, put_masks, spread_mask

QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 16, "batch_size": 64}
FEW = ["--images", 60, "--rounds", 40, "--sparsities", "0.3,0.6"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    run.train(TrainSettings(**QUICK, epochs=2), out, progress=Progress(disable=True))
    return out


@pytest.fixture(scope="module")
def exported(dense) -> Path:
    path = dense.parent / "dense.onnx"
    export_onnx(saved.FinishedRun(dense).dense(), torch.zeros(1, 1, 16, 16), path, verify=False)
    return path


def table_of(path: Path, saving: float = 0.8) -> LatencyTable:
    """As it would be measured where masks save that share of what they mask, and no noise is."""
    units = tuple(
        Unit(
            layers=tuple(layer.name for layer in place.layers),
            weights=tuple(layer.weights for layer in place.layers),
            planes=tuple(layer.plane for layer in place.layers),
            seconds=sum(layer.flops for layer in place.layers) * 1e-10,
            options=tuple(
                Option(*choice, sparsity, saving * sparsity, 0.01)
                for choice in place.choices
                for sparsity in (0.2, 0.4, 0.6)
                if can_mask(place, choice, sparsity)
            ),
        )
        for place in places(onnx.load(path), "auto")
    )
    seconds = 1.1 * sum(unit.seconds for unit in units)
    return LatencyTable({"cpu": "a board"}, 1, "nearest", "auto", (1, 1, 16, 16), seconds, units)


# The choice.


def unit_of(name: str, seconds: float, *saved: tuple[float, float]) -> Unit:
    options = tuple(Option((name,), 1, s, share, 0.0) for s, share in saved)
    return Unit((name,), ((8, 8, 3, 3),), ((8, 8),), seconds, options)


numbers = st.integers(0, 1000).map(lambda n: n / 1000)
layers = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.tuples(numbers, numbers), max_size=3)), max_size=4
)


@given(layers, st.floats(0.01, 1))
def test_the_choice_is_the_best_of_all(shapes, share):
    units, costs = [], {}
    for index, (seconds, options) in enumerate(shapes):
        saved = [(0.1 * (k + 1), kept) for k, (kept, _) in enumerate(options)]
        units.append(unit_of(f"layer{index}", seconds * 1e-4, *saved))
        for option, (_, cost) in zip(units[-1].options, options, strict=True):
            costs[units[-1].name, option] = cost
    needed = share * largest_gain(units, costs)
    taken = allocate(units, costs, needed)

    def total(choice) -> tuple[float, float]:
        pairs = [(u, o) for u, o in zip(units, choice, strict=True) if o is not None]
        return sum(gain(u, o) for u, o in pairs), sum(costs[u.name, o] for u, o in pairs)

    every = itertools.product(*([None, *(o for o in unit.options if o.pays)] for unit in units))
    best = min(cost for won, cost in map(total, every) if won >= needed * (1 - 1e-9))
    won, cost = total([taken.get(unit.name) for unit in units])
    assert won >= needed * (1 - 1e-6)
    assert cost == pytest.approx(best, abs=1e-9)


def test_options_within_the_noise_are_not_taken():
    unit = unit_of("conv", 1.0)
    doubtful, sure = Option(("conv",), 1, 0.5, 0.1, 0.06), Option(("conv",), 1, 0.6, 0.1, 0.04)
    unit = dataclasses.replace(unit, options=(doubtful, sure))
    costs = {("conv", doubtful): 0.0, ("conv", sure): 1.0}
    assert allocate([unit], costs, 0.05) == {"conv": sure}
    assert largest_gain([unit], {("conv", doubtful): 0.0}) == 0


# Masks in an exported file.


@given(*(st.integers(1, 20), st.integers(1, 20)), st.floats(0.01, 0.99), st.sampled_from([1, 2, 4]))
def test_as_many_positions_are_masked_as_by_a_model(height, width, sparsity, block):
    mask = spread_mask(height, width, sparsity, block)
    assert mask.shape == (height, width)
    assert mask.any()
    step = block * block / 2
    assert abs((~mask).sum() - sparsity * height * width) <= step + 0.5 or mask.sum() <= 2 * step
    if height % block == width % block == 0:
        score = torch.rand(height, width, dtype=torch.float64)
        own = masks.mask_from_score(score, sparsity, block)
        assert int((~own).sum()) == (~mask).sum()


def test_masks_are_spread():
    """No computed position is far off, as it would be in a corner of masked ones."""
    mask = torch.from_numpy(spread_mask(32, 32, 0.5, 1))
    source = masks.source_map(mask, "nearest").flatten().long()
    index = torch.arange(32 * 32)
    apart = torch.maximum((source // 32 - index // 32).abs(), (source % 32 - index % 32).abs())
    assert apart.max() == 1


class Inverted(nn.Module):
    """An inverted residual, a plain convolution, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.block = nn.Sequential(
            *(nn.Conv2d(16, 64, 1), nn.ReLU6()),
            *(nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.ReLU6()),
            nn.Conv2d(64, 16, 1),
        )
        self.again = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.block(x)
        x = self.again(self.again(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def file_of(network: type[nn.Module], side: int, folder: Path) -> Path:
    """Exported, for images `[1, 3, side, side]`, with weights of seed 0."""
    torch.manual_seed(0)
    path = folder / "model.onnx"
    export_onnx(network().eval(), torch.zeros(1, 3, side, side), path, verify=False)
    return path


@pytest.fixture(scope="module")
def inverted(tmp_path_factory) -> Path:
    return file_of(Inverted, 32, tmp_path_factory.mktemp("inverted"))


def test_a_chain_is_one_place_and_a_repeated_layer_none(inverted):
    found = places(onnx.load(inverted), "auto")
    names = [tuple(layer.name for layer in place.layers) for place in found]
    assert names[0] == ("stem",)
    chain = found[1]
    assert names[1] == ("block.0", "block.2", "block.4")
    assert chain.choices == ((("block.4",), 1), (("block.0", "block.4"), 1))
    assert names[2:] == [("again",), ("again#2",)]
    assert found[2].choices == found[3].choices == ()


def test_blocks_are_single_positions_and_what_training_would_take(exported, dense):
    config = SparsityConfig(0.5, block="auto")
    model = saved.FinishedRun(dense).dense()
    sparsifier = Sparsifier(model, torch.zeros(1, 1, 16, 16), config, 1)
    found = {place.layers[-1].name: place for place in places(onnx.load(exported), "auto")}
    assert found.keys() == sparsifier.masks.keys()
    for name, rule in sparsifier._rules.items():
        assert {choice.block for choice in found[name].choices} == {1, rule.block}
    assert {rule.block for rule in sparsifier._rules.values()} == {1, 2, 4}
    assert {c.block for place in places(onnx.load(exported), 3) for c in place.choices} == {3}


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
@pytest.mark.parametrize("choice", [0, 1])
def test_masks_in_a_file_compute_what_they_do_in_torch(inverted, fill, choice):
    """By the portable bodies: the library's operators have tests of their own."""
    model = onnx.load(inverted)
    masked = {
        place: place.choices[choice] for place in places(model, 1) if choice < len(place.choices)
    }
    copy = put_masks(model, masked, 0.5, fill)
    onnx.checker.check_model(copy, full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    session = InferenceSession(copy.SerializeToString(), library=False)
    (output,) = session.run(None, {"input": x})
    torch.manual_seed(0)
    network = Inverted().eval()
    layers = dict(network.named_modules())
    names = [name for chosen in masked.values() for name in chosen.layers]
    assert names == (["stem", "block.4"], ["block.0", "block.4"])[choice]
    config = SparsityConfig(0.5, only=names, fill=fill)
    Sparsifier(network, torch.zeros(1, 3, 32, 32), config, 1).freeze()
    for place in masked:
        for layer in place.layers:
            if layer.name in names:
                mask = torch.from_numpy(spread_mask(*layer.plane, 0.5, 1))
                layers[layer.name].set_mask(mask)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    if fill == "bias":
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    else:
        # Masked positions copy other computed ones than the nearest.
        assert output.shape == expected.shape
        assert np.isfinite(output).all()


class LayerNorm2d(nn.LayerNorm):
    """Of the channels of `[N, H, W, C]`, given `[N, C, H, W]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


class Spared(nn.Module):
    """Blocks in which a mask on the last layer spares others: of two, three, gated and no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 8, 1)
        self.wide = nn.Conv2d(8, 8, 3, 1, 1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 5, 1, 2, groups=16)
        self.norm = LayerNorm2d(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.halves = nn.Conv2d(16, 32, 1)
        self.joined = nn.Conv2d(16, 16, 1)
        self.before_strided = nn.Conv2d(16, 16, 3, 1, 1)
        self.strided = nn.Conv2d(16, 16, 1, 2)
        self.read_twice = nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x).relu()
        x = self.expand(self.wide(x).relu()) + 1
        x = x + self.mlp(self.norm(self.depthwise(x))).permute(0, 3, 1, 2)
        gate, value = self.halves(x).chunk(2, 1)
        x = x + self.joined(gate.tanh() * value)
        x = self.strided(self.before_strided(x).relu()).relu()
        return x + self.read_twice(x)


@pytest.fixture(scope="module")
def spared(tmp_path_factory) -> Path:
    return file_of(Spared, 12, tmp_path_factory.mktemp("spared"))


def test_layers_that_a_mask_spares_are_one_place_with_it(spared):
    found = [[layer.name for layer in place.layers] for place in places(onnx.load(spared), "auto")]
    assert found == [
        ["squeeze"],
        ["wide", "expand"],
        ["depthwise", "mlp.0", "mlp.2"],
        ["halves", "joined"],
        ["before_strided"],
        ["strided"],
        ["read_twice"],
    ]
    for place in places(onnx.load(spared), 1):
        last = place.layers[-1].name
        # Of what a strided 1x1 layer reads, three quarters are masked without any mask.
        assert place.choices == (() if last == "before_strided" else (((last,), 1),))


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_what_is_timed_computes_what_an_exported_model_does(spared, fill, tmp_path):
    """The same positions of every layer, those that are spared among them."""
    model = onnx.load(spared)
    # A mask on the strided layer spares some of the 3x3 one before it, which is not its place.
    found = [place for place in places(model, 1) if place.choices and place.nodes != ("strided",)]
    masked = {place: place.choices[0] for place in found}
    copy = put_masks(model, masked, 0.5, fill)
    torch.manual_seed(0)
    network = Spared().eval()
    names = [place.layers[-1].name for place in masked]
    config = SparsityConfig(0.5, only=names, fill=fill)
    Sparsifier(network, torch.zeros(1, 3, 12, 12), config, 1).freeze()
    layers = dict(network.named_modules())
    for place in masked:
        mask = torch.from_numpy(spread_mask(*place.layers[-1].plane, 0.5, 1))
        layers[place.layers[-1].name].set_mask(mask)
    path = tmp_path / "masked.onnx"
    export_onnx(network, torch.zeros(1, 3, 12, 12), path, verify=False)
    expected = {layer.name: layer.computed for layer in work_of(onnx.load(path)).layers}
    computed = {layer.name: layer.computed for layer in work_of(copy).layers}
    assert computed == expected
    for name in ("wide", "expand", "depthwise", "mlp.0", "mlp.2", "halves", "joined"):
        assert computed[name] == 72
    kinds = [Counter(node.op_type for node in file.graph.node) for file in (copy, onnx.load(path))]
    assert kinds[0] == kinds[1]
    assert kinds[0]["LayerNormMasked"] == 1
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    for file in (copy.SerializeToString(), path):
        with_library = InferenceSession(file).run(None, {"input": x})[0]
        without = InferenceSession(file, library=False).run(None, {"input": x})[0]
        np.testing.assert_allclose(with_library, without, rtol=1e-4, atol=1e-5)


def test_files_that_cannot_have_masks_are_refused(exported, dense, tmp_path):
    model = saved.FinishedRun(dense).dense()
    Sparsifier(model, torch.zeros(1, 1, 16, 16), SparsityConfig(0.3), 1).freeze()
    path = tmp_path / "masked.onnx"
    export_onnx(model, torch.zeros(1, 1, 16, 16), path, verify=False)
    with pytest.raises(FileFormatError, match="masked already"):
        places(onnx.load(path), 1)
    plain = onnx.load(exported)
    for node in plain.graph.node:
        node.domain = ""
    with pytest.raises(FileFormatError, match="no convolution of semisparse"):
        places(plain, 1)


# What is measured.


def test_latencies_are_of_every_layer_and_go_on_where_they_were(exported, tmp_path, monkeypatch):
    settings = latency.Settings((0.3, 0.6), rounds=4)
    cache = tmp_path / "latencies.json"
    calls = []
    real = latency._Meter.saved

    def failing(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(latency._Meter, "saved", failing)
    with pytest.raises(KeyboardInterrupt):
        latency.measure(exported, settings, cache)
    first = json.loads(cache.read_text())["values"]
    assert first.keys() == {"dense", "0 0.3"}
    table = latency.measure(exported, settings, cache)
    assert len(calls) == 5  # two blocks at two sparsities, one of them tried twice
    assert json.loads(cache.read_text())["values"]["0 0.3"] == first["0 0.3"]

    assert [unit.name for unit in table.units][:2] == ["stem.0", "layer1.0.conv1"]
    assert all(unit.seconds > 0 for unit in table.units)
    assert sum(unit.seconds for unit in table.units) <= table.seconds
    assert {o.sparsity for unit in table.units for o in unit.options} == {0.3, 0.6}
    path = tmp_path / "table.json"
    table.save(path)
    assert LatencyTable.load(path) == table

    latency.measure(exported, latency.Settings((0.3,), rounds=5), cache)
    assert len(calls) == 7  # other settings are another measurement


def test_a_cache_that_is_damaged_is_measured_again(tmp_path):
    path = tmp_path / "cache.json"
    for text in ("", "{", "[1]", '{"key": 3}'):
        path.write_text(text)
        cache = Cache(path, {"a": (1, 2)})
        assert "x" not in cache
        cache["x"] = [1.5]
        assert Cache(path, {"a": [1, 2]})["x"] == [1.5]
        assert "x" not in Cache(path, {"a": [1, 3]})


def test_sensitivities_are_those_of_a_layer_masked_alone(dense, exported, tmp_path):
    model = saved.FinishedRun(dense).dense()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(40, 1, 16, 16)
    config = SparsityConfig(0.5, seed=3)
    unit = table_of(exported).units[1]
    candidates = [(unit, option) for option in unit.options]
    cache = Cache(tmp_path / "s.json", sensitivity.key(model, images, config))
    costs = sensitivity.measure(model, images, candidates, config, cache)
    assert len(costs) == len(unit.options) == 6
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)

    with torch.no_grad():
        reference, before = model(images), statistics_of(model, images)
        option = unit.options[-2]
        assert (option.block, option.sparsity) == (4, 0.4)
        alone = SparsityConfig(0.4, only=unit.layers, block=4, seed=3)
        Sparsifier(model, images[:1], alone, 1).freeze()
        untouched = Change.between(model(images), reference).divergence
        recalibrate(model, images, before=before)
        recalibrated = Change.between(model(images), reference).divergence
    assert recalibrated < untouched
    assert costs[unit.name, option] == pytest.approx(recalibrated, rel=1e-4)


# What a user does.


def test_the_command_tunes_a_run(invoke, dense, tmp_path):
    out = tmp_path / "sparsity.json"
    result = invoke("tune", dense, "--max-drop", 60, *FEW, "--skip", "1x1", "--out", out, "--json")
    figures = json.loads(result.stdout)
    config = SparsityConfig.from_json(out.read_text())
    masked = {name for unit in figures["units"] if unit["masked"] for name in unit["layers"]}
    assert masked == set(config.per_layer)
    assert masked
    assert not masked & {"layer2.0.downsample.0", "layer3.0.downsample.0"}
    by_name = {unit["layers"][0]: unit["reason"] for unit in figures["units"]}
    assert by_name["layer2.0.downsample.0"].startswith("skipped")
    assert figures["predicted"]["speedup"] > 1
    assert figures["measured"]["speedup"]["median"] > 0
    assert figures["measured"]["drop"]["points"] <= 60
    # The masks that were measured are those that anyone makes of the file.
    model = saved.FinishedRun(dense).dense()
    sparsifier = Sparsifier(model, torch.zeros(1, 1, 16, 16), config, 1)
    assert set(sparsifier.masks) == masked
    # Again, from what was measured.
    kept = (out.with_suffix(".tune") / "sensitivities.json").read_text()
    again = invoke("tune", dense, "--max-drop", 60, *FEW, "--skip", "1x1", "--out", out)
    assert "speedup" in again.stdout
    assert (out.with_suffix(".tune") / "sensitivities.json").read_text() == kept


def test_the_command_takes_the_latencies_of_another_machine(
    invoke, refused, dense, exported, tmp_path
):
    path, out = tmp_path / "latencies.json", tmp_path / "sparsity.json"
    table = table_of(exported)
    table.save(path)
    arguments = [dense, "--images", 60, "--latencies", path, "--out", out]
    result = invoke("tune", *arguments, "--target-speedup", 1.2, "--json")
    figures = json.loads(result.stdout)
    assert figures["predicted"]["speedup"] >= 1.2 - 1e-6
    assert figures["measured"]["speedup"] is None
    for option in (["--threads", 1], ["--block", 2], ["--fill", "bias"]):
        said = refused("tune", *arguments, "--target-speedup", 1.2, *option)
        assert f"{option[0]} is decided by --latencies" in said


def test_a_table_of_another_model_is_refused(exported, tmp_path):
    path = tmp_path / "latencies.json"
    table = table_of(exported)
    latency.check_fits(table, path, exported)
    smaller = dataclasses.replace(table.units[2], planes=((8, 8),))
    for units in (table.units[1:], (*table.units[:2], smaller, *table.units[3:])):
        with pytest.raises(ConfigError, match="is not of this model"):
            latency.check_fits(dataclasses.replace(table, units=units), path, exported)
    for text in ("{}", "[]", "{", '{"version": 1}', '{"version": 3, "units": [{}]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="measure it with"):
            LatencyTable.load(path)
    with pytest.raises(ConfigError, match="no table of latencies"):
        LatencyTable.load(tmp_path / "none.json")


@pytest.fixture(scope="module")
def tuner(dense, exported) -> Tuner:
    """The labels are what the model says, so every other answer is a drop."""
    model = saved.FinishedRun(dense).dense()
    images = calibration_images("digits", 60, image_size=16)
    labels = model(images).argmax(1)
    table = table_of(exported)
    # As if each masked operation cost alike.
    costs = {(u.name, o): gain(u, o) for u in table.units for o in u.options}
    return Tuner(model, images, (images, labels), SparsityConfig(0.5), table, costs)


def test_goals_out_of_reach_are_refused_with_the_best(tuner):
    with pytest.raises(ConfigError, match="cannot be reached: the best is"):
        tuner.at_latency(tuner.table.seconds / 5)
    with pytest.raises(ConfigError, match="needs none"):
        tuner.at_latency(tuner.table.seconds)
    with pytest.raises(ConfigError, match="the least drop of those that were tried"):
        tuner.at_drop(-1.0)
    with pytest.raises(ConfigError, match="no accuracy without labels"):
        dataclasses.replace(tuner, labelled=None).at_drop(1.0)


def test_the_fastest_masks_within_a_drop_are_found(tuner):
    fastest = tuner.at_drop(100)
    assert fastest.seconds == pytest.approx(tuner.shortest)
    assert fastest.drop is not None
    assert fastest.drop.accuracy == 100
    allowed = fastest.drop.points / 2
    assert allowed > 0
    found = tuner.at_drop(allowed)
    assert found.drop is not None
    assert found.drop.points <= allowed
    assert fastest.seconds < found.seconds < tuner.table.seconds
    # What was measured is what the masks do.
    with torch.no_grad():
        told = found.model(tuner.images).argmax(1)
    lost = 100 * float((told != tuner.labelled[1]).double().mean())
    assert lost == pytest.approx(found.drop.points)


class Residuals(nn.Module):
    """Three residual blocks in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Branched(nn.Module):
    """Convolutions that are one layer in the file, before a block that can be masked."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.ModuleDict(
            {
                "wide": nn.Conv2d(8, 8, 3, 1, 1),
                "narrow": nn.Conv2d(8, 8, 1),
                "bn": nn.BatchNorm2d(8),
            }
        )
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.block = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = sum(branch(x) for branch in self.mixer.values())
        return self.head((x + self.block(x)).mean((2, 3)))


def test_layers_that_are_one_in_the_file_stay_dense(tmp_path):
    torch.manual_seed(0)
    model, images = Branched().eval(), torch.randn(4, 1, 16, 16)
    path = tmp_path / "model.onnx"
    export_onnx(model, images[:1], path, verify=False)
    table = table_of(path)
    allowed = sensitivity.maskable(model, images[:1], SparsityConfig(0.5))
    assert [u.name for u in table.units if not allowed.issuperset(u.layers)] == ["mixer"]
    costs = {(u.name, o): 1.0 for u in table.units for o in u.options if u.name != "mixer"}
    tuner = Tuner(model, images, None, SparsityConfig(0.5), table, costs)
    config = tuner.at_latency(tuner.shortest).config
    sparsifier = Sparsifier(model, images[:1], config, 1)
    assert set(sparsifier.masks) == {"stem", "block.2"}


@pytest.mark.parametrize("seed", [0, 3])
def test_residual_blocks_take_turns_where_that_changes_the_outputs_less(seed, tmp_path):
    torch.manual_seed(seed)
    model, images = Residuals().eval(), torch.randn(8, 1, 32, 32)
    path = tmp_path / "model.onnx"
    export_onnx(model, images[:1], path, verify=False)
    table = table_of(path)
    last = {f"blocks.{k}.2" for k in range(3)}
    costs = {(u.name, o): 1.0 for u in table.units for o in u.options if u.name in last}
    tuner = Tuner(model, images, None, SparsityConfig(0.5), table, costs)
    found = tuner.at_latency(tuner.shortest)

    def divergence(alternate: bool) -> float:
        config = dataclasses.replace(found.config, alternate=alternate)
        return apply(copy.deepcopy(model), images, config, draws=1).after.divergence

    in_step, in_turns = divergence(False), divergence(True)
    assert found.config.alternate is (in_turns < in_step) is (seed == 3)
    assert found.applied.after.divergence == min(in_step, in_turns)


def test_latencies_are_measured_without_torch(exported, tmp_path):
    out = tmp_path / "latencies.json"
    code = f"""
import sys
from semisparse.cli import app
app(["tune", {str(exported)!r}, "--measure-only", "--rounds", "4", "--sparsities", "0.5",
     "--out", {str(out)!r}], standalone_mode=False)
print([name for name in ("torch", "scipy", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    table = LatencyTable.load(out)
    assert table.machine["cpu"]
    latency.check_fits(table, out, exported)


def test_what_cannot_be_tuned_is_one_error(refused, dense, exported, tmp_path):
    out = ["--out", tmp_path / "sparsity.json"]
    assert "one goal" in refused("tune", dense, *out)
    assert "one goal" in refused("tune", dense, *out, "--target-speedup", 2, "--max-drop", 1)
    for goal in (1, 0.5, float("nan"), float("inf")):
        assert "number above 1" in refused("tune", dense, *out, "--target-speedup", goal)
    fast = ["--target-speedup", 1.1]
    assert "separated by commas" in refused("tune", dense, *out, *fast, "--sparsities", "a,b")
    assert "between 0 and 1" in refused("tune", dense, *out, *fast, "--sparsities", "0.5,1")
    assert "no fill" in refused("tune", dense, *out, *fast, "--fill", "zero")
    assert "no goal" in refused("tune", exported, "--measure-only", *out, *fast)
    assert ".onnx" in refused("tune", dense, "--measure-only", *out)
    assert "not a file" in refused("tune", tmp_path / "none.onnx", "--measure-only", *out)
    (tmp_path / "damaged.onnx").write_bytes(exported.read_bytes()[:-100])
    assert "cannot load" in refused("tune", tmp_path / "damaged.onnx", "--measure-only", *out)
    assert "--weights" in refused("tune", "semisparse/resnet8", "--data", "digits", *out, *fast)
    assert "is a folder" in refused("tune", dense, *fast, "--out", tmp_path)
    assert not (tmp_path / "sparsity.json").exists()


def test_samples_that_were_interrupted_do_not_count():
    quiet = np.random.default_rng(0).normal(100e-6, 2e-6, 40)
    busy = quiet.copy()
    busy[::2] += 4e-3
    for samples in (quiet, busy):
        mean, error = latency._undisturbed(samples)
        assert mean == pytest.approx(98e-6, abs=3e-6)
        assert 0 < error < 2e-6
    # Three tries that were disturbed throughout, and a quiet one.
    tries = np.concatenate([quiet * slower for slower in (1.5, 1.3, 1.2, 1.0)])
    assert latency._undisturbed(tries, 4) == latency._undisturbed(quiet)
    assert latency._undisturbed(np.full(4, 5e-6)) == (5e-6, pytest.approx(0.5e-6))


def test_more_samples_are_taken_only_where_they_scatter(exported, tmp_path, monkeypatch):
    sessions = []
    real = latency._Meter._session

    def counted(self, path, *, profiled):
        sessions.append(path)
        return real(self, path, profiled=profiled)

    monkeypatch.setattr(latency._Meter, "_session", counted)
    counts = {}
    for quiet in (1e9, 0.0):  # any noise is little, none is
        monkeypatch.setattr(latency, "_QUIET", quiet)
        sessions.clear()
        table = latency.measure(
            exported, latency.Settings((0.5,), block=1, rounds=4), tmp_path / f"{quiet}.json"
        )
        assert all(np.isfinite(o.saved) for unit in table.units for o in unit.options)
        counts[quiet] = len(sessions)
    # The inputs', then two of the dense model and two of the masked one a try.
    assert counts == {1e9: 5, 0.0: 1 + 4 * latency._TRIES}
