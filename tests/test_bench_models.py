"""What the benchmark builds: the same weights in every file, and the arithmetic they stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from semisparse.bench.models import Model, prepare
from semisparse.bench.work import inlined, read, work_of
from semisparse.errors import ConfigError, FileFormatError, ModelError

NAME = "semisparse/resnet8"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache: Path) -> Model:
    return prepare(
        NAME, cache, sparsities=[0, 0.25], fills=["bias", "nearest", "mean"], image_size=32
    )


def run_stock(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_every_file_computes_what_the_one_torch_model_does(model: Model) -> None:
    with torch.inference_mode():
        truth = model.module()(torch.from_numpy(model.x)).numpy()
    assert difference(model.expected, truth) < 1e-6
    assert difference(run_stock(model.dense, model.x), truth) < 1e-5
    assert [variant.name for variant in model.variants] == [
        "semisparse 0",
        "semisparse 0.25 bias",
        "semisparse 0.25 nearest",
        "semisparse 0.25 mean",
    ]
    for variant in model.variants:
        assert difference(run_stock(variant.path, model.x), variant.expected) < 1e-5
    dense, bias, nearest, mean = (variant.expected for variant in model.variants)
    assert difference(dense, truth) < 1e-6
    assert difference(bias, truth) > 1e-3
    assert difference(bias, nearest) > 1e-3
    assert difference(mean, nearest) > 1e-3


def test_work_is_that_of_the_computed_positions(model: Model) -> None:
    torch_flops = 0

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal torch_flops
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        torch_flops += 2 * layer.weight.numel() * positions  # type: ignore[union-attr, operator]

    module = model.module()
    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    module(torch.from_numpy(model.x))
    dense, bias, nearest, mean = (variant.work for variant in model.variants)
    assert model.work.flops == dense.flops == torch_flops
    assert bias.dense().flops == torch_flops
    assert [layer.name for layer in bias.layers] == [layer.name for layer in nearest.layers]
    assert [layer.name for layer in bias.layers] == [layer.name for layer in mean.layers]
    for layer in (*bias.layers, *nearest.layers, *mean.layers):
        if layer.plane == (1, 1):
            assert layer.sparsity == 0
        else:  # where nothing reads a position, it is not computed either
            half = 0.5 / layer.positions
            assert 0.25 - half <= layer.sparsity <= 0.35 + half
    assert bias.flops <= nearest.flops <= mean.flops < 0.8 * dense.flops
    assert {layer.name for layer in model.work.layers} == {layer.name for layer in bias.layers}


BLOCKS = """
from torch import nn


def conv(c_in, c_out, kernel=1, **options):
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


def network(num_classes):
    return nn.Sequential(
        conv(3, 8, 3, stride=2),
        nn.Sequential(conv(8, 24), nn.ReLU6(), conv(24, 24, 3, stride=2, groups=24), nn.ReLU6()),
        conv(24, 10),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, num_classes),
    )
"""


@pytest.fixture(params=["nearest", "mean"])
def blocks(
    request: pytest.FixtureRequest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Model:
    """A network with one chain, fused and not."""
    (tmp_path / "some_blocks.py").write_text(BLOCKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return prepare(
        "some_blocks:network",
        cache,
        sparsities=[0, 0.25],
        fills=[request.param],
        chains=["fused", "separate"],
        image_size=30,
    )


def test_chains_are_fused_or_not(blocks: Model) -> None:
    names = [variant.name for variant in blocks.variants]
    fill = blocks.variants[-1].fill
    assert names == [
        "semisparse 0",
        "semisparse 0 separate",
        f"semisparse 0.25 {fill}",
        f"semisparse 0.25 {fill} separate",
    ]
    fused, separate = ("1.0+1.2+2",), ("1.0", "1.2", "2")
    for variant, nodes in zip(blocks.variants, [fused, separate] * 2, strict=True):
        assert [layer.name for layer in variant.work.layers] == ["0", *separate, "5"]
        found = dict.fromkeys(layer.node for layer in variant.work.layers)
        assert tuple(found) == ("0", *nodes, "5")


def test_a_chain_is_as_much_work_as_its_layers(blocks: Model) -> None:
    dense, _, fused, separate = (variant.work for variant in blocks.variants)
    assert dense.flops == blocks.work.flops
    assert [layer.plane for layer in fused.layers] == [(15, 15), (15, 15), (8, 8), (8, 8), (1, 1)]
    for one, other in zip(fused.layers, separate.layers, strict=True):
        # The exporter masks what nothing reads; chains leave it out by themselves.
        assert other.computed <= one.computed
        assert dataclasses.replace(one, node=other.node, computed=other.computed) == other
    assert fused.dense().flops == dense.flops


def test_a_chain_that_was_renamed_is_counted_too(blocks: Model) -> None:
    model = read(blocks.variants[2].path)
    (chain,) = (node for node in model.graph.node if "+" in node.name)
    chain.name = "renamed"
    work = work_of(model)
    assert work.flops == blocks.variants[2].work.flops
    assert [layer.name for layer in work.layers if layer.node == "renamed"] == [
        "renamed Expand",
        "renamed Depthwise",
        "renamed Project",
    ]


def test_a_second_time_nothing_is_made_again(model: Model, cache: Path) -> None:
    made: list[str] = []
    times = {path: path.stat().st_mtime_ns for path in model.folder.iterdir()}
    again = prepare(
        NAME, cache, sparsities=[0.25], fills=["bias"], image_size=32, progress=made.append
    )
    assert made == []
    assert again.variants[0].path == model.variants[1].path
    assert {path: path.stat().st_mtime_ns for path in model.folder.iterdir()} == times


def test_another_setting_is_another_file(model: Model, cache: Path) -> None:
    skipping = prepare(NAME, cache, sparsities=[0.25], fills=["bias"], skip=["1x1"], image_size=32)
    assert skipping.variants[0].path not in [variant.path for variant in model.variants]
    for layer in skipping.variants[0].work.layers:
        if layer.weights[2:] == (1, 1):
            assert layer.sparsity == 0


def test_masks_on_some_layers_only(cache: Path) -> None:
    only = {"only": ["block-last"], "image_size": 32, "sparsities": [0.5], "fills": ["mean"]}
    made = [prepare(NAME, cache, alternate=alternate, **only) for alternate in (False, True)]
    assert len({model.variants[0].path for model in made}) == 2
    for model in made:
        (variant,) = model.variants
        masked = {layer.name for layer in variant.work.layers if layer.sparsity}
        assert masked == {f"layer{stage}.0.conv2" for stage in (1, 2, 3)}
        assert difference(run_stock(variant.path, model.x), variant.expected) < 1e-5


def test_branches_of_training_are_merged_for_every_engine(cache: Path) -> None:
    made = prepare("timm/repvgg_a0", cache, sparsities=[0], fills=["bias"], image_size=32)
    assert sum(node.op_type == "Conv" for node in onnx.load(made.dense).graph.node) == 22
    assert len(made.variants[0].work.layers) == len(made.work.layers) == 23
    assert difference(run_stock(made.dense, made.x), made.expected) < 1e-5


def test_the_folder_and_the_input_have_the_height_and_the_width(cache: Path) -> None:
    folders = set()
    for size in ((24, 40), (40, 24)):
        made = prepare(NAME, cache, sparsities=[0.25], fills=["bias"], image_size=size)
        height, width = size
        assert made.folder.name.startswith(f"semisparse-resnet8-{height}x{width}-")
        assert made.x.shape == (1, 3, height, width)
        assert made.work.layers[0].plane == (height, width)
        assert (
            difference(run_stock(made.variants[0].path, made.x), made.variants[0].expected) < 1e-5
        )
        folders.add(made.folder)
    assert len(folders) == 2
    again = prepare(NAME, cache, sparsities=[0.25], fills=["bias"], image_size="24x40")
    assert again.folder in folders


def test_every_fill_is_timed_in_every_block(cache: Path) -> None:
    blocked = prepare(
        NAME, cache, sparsities=[0, 0.25], fills=["bias"], blocks=[1, 4], image_size=32
    )
    assert [variant.name for variant in blocked.variants] == [
        "semisparse 0",
        "semisparse 0.25 bias",
        "semisparse 0.25 bias block 4",
    ]
    assert [variant.block for variant in blocked.variants] == [None, 1, 4]
    dense, single, squares = blocked.variants
    assert difference(squares.expected, single.expected) > 1e-3
    assert difference(run_stock(squares.path, blocked.x), squares.expected) < 1e-5
    assert single.work.flops == pytest.approx(squares.work.flops, rel=0.1)
    assert squares.work.flops < dense.work.flops


def test_an_exported_file_is_timed_as_it_is(model: Model, cache: Path) -> None:
    path = model.variants[2].path
    file = prepare(str(path), cache, sparsities=[0.1], fills=["bias"])
    (variant,) = file.variants
    assert variant.path == path
    assert variant.work.flops == model.variants[2].work.flops
    assert file.work.flops == model.work.flops
    assert {opset.domain for opset in onnx.load(file.dense).opset_import} == {""}
    assert difference(run_stock(file.dense, file.x), variant.expected) < 1e-6
    with pytest.raises(ModelError, match="exported file"):
        file.module()


def test_inlining_leaves_no_function(model: Model, blocks: Model) -> None:
    for variant in (model.variants[2], blocks.variants[2]):
        flat = inlined(read(variant.path))
        assert not flat.functions
        assert {node.domain for node in flat.graph.node} == {""}


def test_work_counts_groups_strides_and_matrix_products() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=2, strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["y"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "v"], ["z"], "fc"),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 9, 7])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(np.zeros((6, 2, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.zeros((6, 5), np.float32), "v"),
        ],
    )
    conv, fc = work_of(helper.make_model(graph)).layers
    assert (conv.name, conv.plane, conv.flops) == ("conv", (4, 3), 2 * 4 * 3 * 6 * 2 * 3 * 3)
    assert (fc.name, fc.plane, fc.flops) == ("fc", (1, 1), 2 * 6 * 5)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("resnet19", {}, ModelError, "did you mean"),
        (NAME, {"sparsities": [1.0]}, ConfigError, r"Sparsity 1\.0"),
        (NAME, {"image_size": 0}, ConfigError, "image_size is 0"),
        (NAME, {"skip": ["nothing.*"], "image_size": 32}, ConfigError, "nothing"),
        ("absent.onnx", {}, FileFormatError, "not a file"),
    ],
)
def test_what_cannot_be_built_is_refused(
    tmp_path: Path,
    name: str,
    options: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    settings: dict[str, object] = {"sparsities": [0.3], "fills": ["bias"], **options}
    with pytest.raises(error, match=words):
        prepare(name, tmp_path, **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("semisparse-*.onnx"))


def test_a_file_without_our_operators_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no operator of semisparse"):
        prepare(str(model.dense), tmp_path, sparsities=[0.1], fills=["bias"])


def test_a_corrupt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(FileFormatError):
        prepare(str(path), tmp_path, sparsities=[0.1], fills=["bias"])
