from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisparse._torchvision import ensure
from semisparse.errors import ModelError
from semisparse.sparsifier import Sparsifier, SparsityConfig
from semisparse.trace import ROLES, Traced, trace
from semisparse.training.resnet import resnet8, resnet20

ensure()
import timm
import torchvision

IMAGE = torch.zeros(1, 3, 64, 64)


def traced(model: nn.Module, *args: Any) -> dict[str, Traced]:
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    return trace(model, convolutions, args or (IMAGE,), {})


def by_role(model: nn.Module, *args: Any) -> dict[str, list[str]]:
    found = traced(model, *args)
    return {role: [n for n, t in found.items() if role in t.roles] for role in ROLES}


@pytest.mark.parametrize(
    ("model", "depths", "last", "stem", "shortcuts"),
    [
        (lambda: resnet8(10), [1, 1, 1], "conv2", "stem.0", "23"),
        (torchvision.models.resnet18, [2, 2, 2, 2], "conv2", "conv1", "234"),
        (torchvision.models.resnet50, [3, 4, 6, 3], "conv3", "conv1", "1234"),
        # A deep stem, shortcuts that pool first, gates (squeeze and excite) that multiply.
        (lambda: timm.create_model("seresnet50"), [3, 4, 6, 3], "conv3", "conv1", "1234"),
        (lambda: timm.create_model("resnet18d"), [2, 2, 2, 2], "conv2", "conv1.0", "234"),
    ],
    ids=["resnet8", "resnet18", "resnet50", "seresnet50", "resnet18d"],
)
def test_roles_in_residual_networks(
    model: Any, depths: list[int], last: str, stem: str, shortcuts: str
) -> None:
    found = by_role(model())
    assert found["stem"] == [stem]
    assert found["block-last"] == [
        f"layer{stage}.{block}.{last}"
        for stage, depth in enumerate(depths, 1)
        for block in range(depth)
    ]
    assert [name[: len("layer1.0.downsample")] for name in found["shortcut"]] == [
        f"layer{stage}.0.downsample" for stage in shortcuts
    ]


def test_roles_in_mobilenet_v2() -> None:
    model = torchvision.models.mobilenet_v2()
    found = by_role(model)
    assert found["stem"] == ["features.0.0"]
    assert found["shortcut"] == []
    assert found["block-last"] == [
        f"features.{i}.conv.2"
        for i, block in enumerate(model.features)
        if getattr(block, "use_res_connect", False)
    ]
    assert len(found["block-last"]) == 10


def test_a_network_without_additions_has_a_stem_only() -> None:
    found = by_role(torchvision.models.vgg11())
    assert found == {"stem": ["features.0"], "block-last": [], "shortcut": []}


def numbers(model: nn.Module, *args: Any) -> dict[str, int]:
    return {name: t.residual_block for name, t in traced(model, *args).items()}


def test_residual_blocks_are_counted_by_planes() -> None:
    found = numbers(resnet20(10), torch.zeros(1, 3, 32, 32))
    assert found["stem.0"] == 0
    assert {name: number for name, number in found.items() if name != "stem.0"} == {
        name: int(name.split(".")[1]) + 1 for name in found if name != "stem.0"
    }


def test_convolutions_outside_of_residual_blocks_have_no_number() -> None:
    found = numbers(torchvision.models.mobilenet_v2())
    # Stages of 1, 2, 3, 4, 3, 3 and 1 blocks, of which the first of each has no residual; those of 4
    # and the 3 behind them lie on planes of one size.
    blocks = [0, *(0, 1), *(0, 1, 2), *(0, 1, 2, 3), *(0, 4, 5), *(0, 1, 2), 0]
    for name, number in found.items():
        index = int(name.split(".")[1])
        assert number == (blocks[index - 1] if 0 < index < 18 else 0), name
    assert set(numbers(torchvision.models.vgg11()).values()) == {0}


@pytest.mark.parametrize("merged", [False, True])
def test_branches_of_training_are_no_blocks(merged: bool) -> None:
    from timm.utils.model import reparameterize_model

    model = timm.create_model("fastvit_t8")
    found = traced(reparameterize_model(model) if merged else model)
    last = {name: t.residual_block for name, t in found.items() if "block-last" in t.roles}
    assert last == {
        f"stages.{stage}.blocks.{block}.mlp.fc2": block + 1
        for stage, depth in enumerate((2, 2, 4, 2))
        for block in range(depth)
    }


def test_gates_and_pools_do_not_end_the_count() -> None:
    found = numbers(timm.create_model("seresnet50"))
    assert found["layer3.5.conv2"] == found["layer3.5.se.fc1"] == 6
    assert found["layer3.0.downsample.0"] == found["layer3.0.conv1"] == 1


def test_a_block_within_a_block_counts_by_itself() -> None:
    class Nested(Branches):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            inner = self.b(x)
            return x + self.d(inner + self.c(inner))

    assert numbers(Nested(None, None), torch.zeros(1, 3, 8, 8)) == {"a": 0, "b": 1, "c": 1, "d": 1}


class Branches(nn.Module):
    """`short` and `long` are the functions that run the two branches of one addition."""

    def __init__(self, long: Any, short: Any) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Conv2d(3, 3, 3, padding=1))
        self.long, self.short = long, short

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.long(self, x) + self.short(self, x)


@pytest.mark.parametrize(
    ("long", "short", "block_last", "shortcut"),
    [
        (lambda m, x: m.c(m.b(x).relu_()), lambda m, x: x, ["c"], []),
        (lambda m, x: m.c(m.b(x)), lambda m, x: m.d(x), ["c"], ["d"]),
        (lambda m, x: m.c(m.b(x)), lambda m, x: m.d(x.clone()).mul_(2), ["c"], ["d"]),
        # What is added lies on another plane than the convolution's.
        (lambda m, x: m.c(nn.functional.max_pool2d(m.b(x), 3, 1, 1)), lambda m, x: x, ["c"], []),
        (
            lambda m, x: nn.functional.interpolate(m.b(x)[..., ::2, ::2], scale_factor=2.0),
            lambda m, x: x,
            [],
            [],
        ),
        # A convolution alone is one only with an activation.
        (lambda m, x: m.b(x).relu(), lambda m, x: x, ["b"], []),
        (lambda m, x: 0.5 * m.b(x) - m.c(x), lambda m, x: x, [], []),
        # Two branches as long as each other are no block.
        (lambda m, x: m.b(x), lambda m, x: m.c(x), [], []),
        # A sum that is no addition of two branches on one plane.
        (lambda m, x: m.b(x), lambda m, x: m.c(x).mean((2, 3), keepdim=True), [], []),
        (lambda m, x: m.b(x), lambda m, x: 1.0, [], []),
    ],
)
def test_roles_of_two_branches(
    long: Any, short: Any, block_last: list[str], shortcut: list[str]
) -> None:
    found = by_role(Branches(long, short), torch.zeros(1, 3, 8, 8))
    assert found == {"stem": ["a"], "block-last": block_last, "shortcut": shortcut}


def test_an_addition_in_place_changes_what_the_tensor_is() -> None:
    class InPlace(Branches):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x).relu()
            y += x
            return torch.add(self.c(y).relu(), y)

    found = by_role(InPlace(None, None), torch.zeros(1, 3, 8, 8))
    assert found["block-last"] == ["b", "c"]


def test_convolutions_may_be_called_by_name() -> None:
    class ByName(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(input=self.a(x).relu())

    found = traced(ByName(None, None), torch.zeros(1, 3, 8, 8))
    assert found["b"].planes == {(8, 8)}


def test_planes_are_those_of_all_calls() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, stride=2))
    model.append(model[0])
    found = traced(model, torch.zeros(2, 3, 12, 20))
    assert found["0"].planes == {(10, 18), (3, 7)}
    assert found["1"].planes == {(5, 9)}


def test_a_model_that_does_not_run_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(), nn.Linear(9, 2)).train()
    model[1].eval()
    with pytest.raises(ModelError, match="does not run on the example input"):
        traced(model)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not model[0]._forward_hooks


def test_only_the_last_layers_of_blocks_are_masked() -> None:
    config = SparsityConfig(sparsity=0.5, only=["block-last"], block="auto")
    sparsifier = Sparsifier(resnet8(10), torch.zeros(1, 3, 32, 32), config, total_steps=1)
    sparsifier.freeze()
    assert sparsifier.sparsities == dict.fromkeys(
        ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"], 0.5
    )
    for (name, mask), block in zip(sparsifier.masks.items(), (4, 4, 2), strict=True):
        tiles = mask.unfold(0, block, block).unfold(1, block, block).flatten(2)
        assert (tiles.all(2) | ~tiles.any(2)).all(), name


def test_a_compiled_model_is_watched_without_compiling_it() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    model = torch.compile(resnet8(10), backend=backend)
    assert len(by_role(model)["block-last"]) == 3
    assert not compiled
