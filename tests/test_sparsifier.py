from __future__ import annotations

import copy
import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from semisparse.blue_noise import blue_noise_score
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MaskError, ModelError
from semisparse.layers import masked_layers
from semisparse.masks import mask_from_score, propagate
from semisparse.sparsifier import Sparsifier

SIZE = (14, 20)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Net(nn.Module):
    """Strided, depthwise, pointwise and shared convolutions, batch norm, dropout, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = Block(8)
        self.again = self.block
        self.unused = nn.Conv2d(8, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.block(self.norm(self.stem(x)).relu()))
        return self.head(self.squeeze(self.pool(x)).flatten(1))


MASKED = ["stem", "block.conv1", "block.conv2"]
LABELS = torch.tensor([0, 1, 1, 0])


def example(n: int = 1) -> Tensor:
    return torch.randn(n, 3, *SIZE)


def sparsifier(model: nn.Module | None = None, steps: int = 20, **values: Any) -> Sparsifier:
    config = SparsityConfig(**{"sparsity": 0.4, "begin": 0.1, "end": 0.9, **values})
    return Sparsifier(model or Net(), example(), config, total_steps=steps)


def train(model: nn.Module, sparsifier: Sparsifier, steps: int, seed: int = 0) -> list[Tensor]:
    """Masks of every layer after every step, in one tensor each."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    history = []
    for _ in range(steps):
        sparsifier.step()
        x = torch.randn(4, 3, *SIZE, generator=generator)
        loss = nn.functional.cross_entropy(model(x), LABELS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.observe(loss)
        history.append(torch.cat([mask.flatten() for mask in sparsifier.masks.values()]))
    return history


def test_a_training_run_from_dense_to_frozen() -> None:
    model = Net()
    s = sparsifier(model)
    assert list(s.masks) == MASKED
    assert [tuple(mask.shape) for mask in s.masks.values()] == [(7, 10)] * 3
    assert set(s.sparsities.values()) == {0.0}
    seen = []
    for step in range(25):
        train(model, s, 1, seed=step)
        seen.append(s.sparsity)
        for mask in s.masks.values():
            assert int((~mask).sum()) == round(s.sparsity * 70)
        assert s.frozen == (step >= 18)
    assert seen[:3] == [0, 0, 0]
    assert seen[:19] == sorted(seen[:19])
    assert seen[10] == pytest.approx(0.4 - 0.4 * (1 - 8 / 16) ** 2)
    assert seen[18:] == [0.4] * 7


def test_by_default_the_first_draw_is_fixed_from_the_first_step() -> None:
    model = Net()
    s = Sparsifier(model, example(), SparsityConfig(0.4), total_steps=20)
    history = train(model, s, 5)
    assert s.frozen
    assert s.sparsities == pytest.approx(dict.fromkeys(MASKED, 0.4))
    assert all(torch.equal(masks, history[0]) for masks in history)


def test_blue_noise_is_shifted_by_the_draws_of_the_seed() -> None:
    s = sparsifier(seed=7, selection="last", per_layer_block={"block.conv2": 2})
    generator = torch.Generator().manual_seed(7)
    for _ in range(6):
        s.step()
    for _ in range(3):  # steps 0 to 2 have sparsity 0 and draw nothing
        shift = torch.rand(2, dtype=torch.float64, generator=generator)
    assert s.masks.keys() == set(MASKED)
    for name, mask in s.masks.items():
        block = 2 if name == "block.conv2" else 1
        score = blue_noise_score(shift, 7, 10, block)
        assert torch.equal(mask, mask_from_score(score, s.sparsity, block)), name


def test_masks_are_the_propagated_draws_of_the_seed() -> None:
    s = sparsifier(seed=7, selection="last", masks="random")
    generator = torch.Generator().manual_seed(7)
    for _ in range(6):
        s.step()
    for _ in range(3):  # steps 0 to 2 have sparsity 0 and draw nothing
        score = torch.rand(SIZE, dtype=torch.float64, generator=generator)
    expected = mask_from_score(propagate(score, 7, 10), s.sparsity)
    assert all(torch.equal(mask, expected) for mask in s.masks.values())


def test_frozen_masks_grow_out_of_the_selected_draw() -> None:
    for selection, better in [("best_loss", 9), ("first", 3), ("last", 17)]:
        s = sparsifier(selection=selection)
        for step in range(18):
            s.step()
            if step == better:
                kept = s.masks["stem"]
            s.observe(1.0 - 0.9 * (step == 9) + 0.01 * (step % 2))
        s.step()
        assert s.frozen
        assert not (s.masks["stem"] & ~kept).any(), selection
        assert s.sparsities["stem"] == pytest.approx(0.4)


def test_a_new_draw_comes_every_frequency_steps_only() -> None:
    model = Net()
    history = train(model, sparsifier(model, frequency=4), 16)
    changes = [i for i in range(1, 16) if not torch.equal(history[i], history[i - 1])]
    assert changes == [4, 8, 12]


def test_initial_sparsity_applies_from_the_first_step() -> None:
    s = sparsifier(initial=0.2, per_layer={"stem": 0.1})
    s.step()
    assert s.sparsity == 0.2
    assert s.sparsities == pytest.approx({"stem": 0.1, "block.conv1": 0.2, "block.conv2": 0.2})


def test_rules_decide_layers_sparsities_and_fills() -> None:
    model = Net()
    s = sparsifier(
        model, skip=["depthwise"], per_layer={"block.*": 0.8}, per_layer_fill={"stem": "bias"}
    )
    s.freeze()
    assert s.sparsities == pytest.approx({"stem": 0.4, "block.conv2": 0.8})
    assert {n: layer.fill for n, layer in masked_layers(model).items()} == {
        "stem": "bias",
        "block.conv2": "nearest",
    }


def test_blocks_are_masked_as_a_whole_by_the_draw_of_the_seed() -> None:
    s = sparsifier(
        block=4, per_layer_block={"block.conv2": 1}, per_layer={"stem": 0.7}, seed=7, masks="random"
    )
    s.freeze()
    score = torch.rand(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    pooled = propagate(score, 7, 10)
    expected = {
        "stem": mask_from_score(pooled, 0.7, 4),
        "block.conv1": mask_from_score(pooled, 0.4, 4),
        "block.conv2": mask_from_score(pooled, 0.4),
    }
    assert s.masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(s.masks[name], mask), name
    for tile in (s.masks["stem"][:4, 4:8], s.masks["stem"][4:, 8:]):
        assert tile.all() or not tile.any()


def test_masks_of_different_layers_are_aligned() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1)
    )
    s = Sparsifier(model, example(), SparsityConfig(0.5, masks="random"), total_steps=1)
    s.freeze()
    assert torch.equal(s.masks["0"], s.masks["1"])
    fine = s.masks["0"].double()[None]
    pooled = nn.functional.avg_pool2d(fine, 2)[0]
    kept = s.masks["3"]
    assert pooled[kept].mean() > pooled[~kept].mean() + 0.2


def chain(values: dict[str, Any], importance: Tensor | None = None) -> list[list[Tensor]]:
    """Masks of a stem, of four residual blocks behind it, and of a head, each a list by layer."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *(Block(4) for _ in range(4)), nn.Conv2d(4, 2, 1))
    measured = None if importance is None else {(12, 12): importance}
    s = Sparsifier(model, torch.zeros(1, 3, 12, 12), SparsityConfig(**values), 1, measured)
    s.freeze()
    return [[m for n, m in s.masks.items() if n.split(".")[0] == str(i)] for i in range(6)]


@given(
    sparsity=st.floats(0.15, 0.85),
    masks=st.sampled_from(["blue-noise", "random"]),
    block=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 9),
)
def test_residual_blocks_take_turns(sparsity: float, masks: str, block: int, seed: int) -> None:
    values = {"sparsity": sparsity, "masks": masks, "block": block, "seed": seed}
    (aligned,), *_ = chain(values)
    stem, *blocks, head = chain({**values, "alternate": True})
    for depthwise, projection in blocks:
        assert torch.equal(depthwise, projection)
    turns = [layers[0] for layers in blocks]
    for mask in (*stem, turns[0], *head):
        assert torch.equal(mask, aligned)
    count = int((~aligned).sum())
    assert [int((~mask).sum()) for mask in turns] == 4 * [count]
    for one, other in (turns[:2], turns[2:]):
        assert int((~one & ~other).sum()) == max(0, 2 * count - 144)


def test_alternating_blocks_both_mask_what_does_not_matter() -> None:
    importance = torch.ones(12, 12, dtype=torch.float64)
    importance[:, :3] = 0
    blocks = chain({"sparsity": 0.5, "importance": 1.0, "alternate": True}, importance)[1:5]
    one, other = (~layers[0] for layers in blocks[:2])
    assert one[:, :3].all()
    assert other[:, :3].all()
    assert not (one & other)[:, 3:].any()


def test_alternating_masks_grow_and_are_redrawn() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Block(4), Block(4))
    config = SparsityConfig(0.5, alternate=True, begin=0.0, end=1.0, selection="last")
    s = Sparsifier(model, example(), config, total_steps=12)
    drawn = []
    for _ in range(12):
        s.step()
        masks = s.masks
        assert not (~masks["1.conv2"] & ~masks["2.conv2"]).any()
        assert masks["1.conv2"].sum() == masks["2.conv2"].sum()
        drawn.append(masks["1.conv2"])
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(drawn[1:]))
    s.freeze()
    assert not (s.masks["1.conv2"] & ~drawn[-1]).any()


def test_freeze_without_a_step_masks_an_untrained_model() -> None:
    s = sparsifier()
    s.freeze()
    assert s.frozen
    assert s.sparsity == 0.4
    assert all(value == pytest.approx(0.4) for value in s.sparsities.values())
    before = s.masks
    s.freeze()
    s.step()
    s.observe(1.0)
    assert all(torch.equal(mask, before[name]) for name, mask in s.masks.items())


def test_attaching_leaves_no_trace_but_masks_and_detaching_none() -> None:
    model = Net().train()
    model.head.eval()
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    classes = [type(m) for m in model.modules()]
    x, rng = example(4), torch.get_rng_state()
    s = sparsifier(model)
    torch.set_rng_state(rng)
    config = s.config
    s = (s.detach(), Sparsifier(model, x, config, total_steps=20))[1]
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == flags
    assert model.semisparse_config == config.to_json()
    added = set(model.state_dict()) - set(state)
    assert added == {f"{name}.mask" for name in [*MASKED, "again.conv1", "again.conv2"]}
    s.freeze()
    s.detach()
    s.detach()
    assert not hasattr(model, "semisparse_config")
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for call in (s.step, s.freeze, s.state_dict, lambda: s.observe(1.0)):
        with pytest.raises(ModelError, match="detached"):
            call()


def test_training_is_the_plain_one_while_nothing_is_masked() -> None:
    torch.manual_seed(0)
    plain = Net().eval()
    model = copy.deepcopy(plain)
    sparsifier(model)
    x = example(3)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("stop", [1, 7, 12, 19])
@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_restored_state_goes_on_bit_for_bit(stop: int, fill: str) -> None:
    torch.manual_seed(0)
    model = Net()
    start = copy.deepcopy(model.state_dict())
    s = sparsifier(model, fill=fill, frequency=2)
    torch.manual_seed(1)  # of dropout
    train(model, s, stop, seed=1)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "sparsifier": s.state_dict()}, file)
    torch.manual_seed(2)
    expected = train(model, s, 25 - stop, seed=2)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Net()
    again.load_state_dict(start)
    restored = sparsifier(again, fill=fill, frequency=2)
    again.load_state_dict(saved["model"])
    restored.load_state_dict(saved["sparsifier"])
    torch.manual_seed(2)
    got = train(again, restored, 25 - stop, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )


def test_state_of_another_run_is_refused_and_changes_nothing() -> None:
    s = sparsifier(skip=["depthwise"])
    s.step()
    before = s.masks
    state = s.state_dict()
    other_size = copy.deepcopy(state)
    other_size["masks"]["stem"] = torch.ones(3, 3, dtype=torch.bool)
    other_layers = copy.deepcopy(state)
    other_layers["masks"]["extra"] = other_layers["masks"].pop("stem")
    not_a_mask = copy.deepcopy(state)
    not_a_mask["masks"]["stem"] = torch.ones(7, 10)
    for bad, error, message in [
        ({}, ConfigError, "lacks version, config"),
        ({**state, "selection": {}}, ConfigError, "lacks policy"),
        ({**state, "version": 9}, ConfigError, "version 9"),
        (sparsifier(seed=3).state_dict(), ConfigError, "skip is .* seed is 3 there and 0 here"),
        (sparsifier(steps=9, skip=["depthwise"]).state_dict(), ConfigError, "total_steps is 9"),
        (other_size, MaskError, r"stem is \[3, 3\] there and \[7, 10\] here"),
        (other_layers, MaskError, "(stem|extra) is masked"),
        (not_a_mask, MaskError, "float32"),
    ]:
        with pytest.raises(error, match=message):
            s.load_state_dict(bad)
        assert all(torch.equal(mask, before[name]) for name, mask in s.masks.items())


def test_observe_is_forgiving() -> None:
    s = sparsifier(begin=0.0)
    s.observe(1.0)
    for loss in (float("nan"), torch.tensor(float("inf")), torch.tensor(1.0, requires_grad=True)):
        s.step()
        s.observe(loss)
    s.step()
    s.observe(torch.tensor([0.5], dtype=torch.bfloat16))
    s.observe(0.5)
    s.freeze()
    assert s.sparsities["stem"] == pytest.approx(0.4)
    with pytest.raises(ConfigError, match=r"shape \[8\]"):
        sparsifier().observe(torch.zeros(8))


def test_example_may_be_arguments_by_place_or_name() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, scale: float, x: Tensor) -> Tensor:
            return scale * self.conv(x)

    config = SparsityConfig(sparsity=0.5)
    for inputs in [(2.0, example()), [2.0, example()[0]], {"x": example(), "scale": 2.0}]:
        s = Sparsifier(Scaled(), inputs, config, total_steps=1)
        assert s.masks["conv"].shape == (12, 18)


def test_planes_of_one_position_and_layers_not_called_stay_dense() -> None:
    model = Net()
    s = sparsifier(model, sparsity=0.9)
    assert list(s.masks) == MASKED
    assert type(model.squeeze) is nn.Conv2d
    # One block of 8 covers 7x7, and half of the smallest of 4, 3x3, is above 0.05 * 49.
    for values in ({"sparsity": 0.9, "block": 8}, {"sparsity": 0.05, "block": 4}):
        with pytest.raises(ModelError, match="too small for their sparsity and block"):
            Sparsifier(
                nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 7, 7), SparsityConfig(**values), total_steps=1
            )


def test_total_steps_and_models_that_do_not_fit_are_refused() -> None:
    config = SparsityConfig(sparsity=0.3)

    class TwoSizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.other = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.other(self.conv(x)))

    for steps in (0, -1, 1.5, True, "9"):
        with pytest.raises(ConfigError, match="total_steps"):
            Sparsifier(Net(), example(), config, total_steps=steps)  # type: ignore[arg-type]
    for model, inputs, message in [
        (nn.ReLU(), example(), "no convolution"),
        (Net(), torch.zeros(2, 3), "holds no tensor"),
        (Net(), torch.zeros(1, 4, 8, 8), "does not run .*RuntimeError"),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), torch.zeros(1, 3, 3, 3), "none of the model's 1"),
        (TwoSizes(), example(), "conv is called at several output sizes, 8x14 and 12x18"),
    ]:
        with pytest.raises(ModelError, match=message):
            Sparsifier(model, inputs, config, total_steps=9)
        assert not masked_layers(model)
        assert not hasattr(model, "semisparse_config")
    skipping = SparsityConfig(sparsity=0.3, skip=["conv"])
    assert list(Sparsifier(TwoSizes(), example(), skipping, total_steps=9).masks) == ["other"]
    with pytest.raises(ModelError, match="none of the model's 5"):
        sparsifier(skip=["*"])
    model = Net()
    sparsifier(model)
    with pytest.raises(ModelError, match="has a Sparsifier already"):
        sparsifier(model)
    inner = nn.Conv2d(3, 3, 3, padding=1)
    outer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), inner)
    Sparsifier(inner, example(), config, total_steps=9)
    with pytest.raises(ModelError, match="1 is already masked"):
        Sparsifier(outer, example(), config, total_steps=9)
    assert list(masked_layers(outer)) == ["1"]
    with pytest.raises(MaskError, match="the mask of the layer was made for"):
        inner(torch.zeros(1, 3, 9, 9))


def test_an_input_of_another_size_is_refused_by_name() -> None:
    model = Net().eval()
    sparsifier(model).freeze()
    with pytest.raises(MaskError, match="stem was made for an output plane of 7x10"):
        model(torch.zeros(1, 3, 28, 28))


RANK = """
import sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from semisparse import Sparsifier, SparsityConfig

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
s = Sparsifier(model, torch.zeros(1, 3, 8, 8), SparsityConfig(0.4, begin=0.1, end=0.9), total_steps=12)
ddp = DistributedDataParallel(model)
for step in range(12):
    s.step()
    loss = ddp(torch.randn(4, 3, 8, 8)).square().mean()
    loss.backward()
    # Alone, each rank would pick another draw; together they pick draw 7.
    losses = {4: (0.1, 1.9), 5: (1.9, 0.1), 7: (0.6, 0.6)}.get(step, (1.0, 1.0))
    s.observe(torch.tensor(losses[rank] + 0.01 * (step % 2)))
    if step == 7:
        drawn = s.masks["0"]
torch.save({"masks": s.masks["0"], "drawn": drawn, "frozen": s.frozen}, out)
distributed.destroy_process_group()
"""


def test_ranks_draw_and_pick_the_same_masks(tmp_path: Path) -> None:
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "store"), str(out)])
        for rank, out in enumerate(outs)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    one, other = (torch.load(out, weights_only=True) for out in outs)
    assert one["frozen"]
    assert other["frozen"]
    assert torch.equal(one["masks"], other["masks"])
    assert not (one["masks"] & ~one["drawn"]).any()
