"""Finished runs side by side, as a user asks for them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from semisparse.config import SparsityConfig
from semisparse.export import export_onnx
from semisparse.sparsifier import Sparsifier
from semisparse.training import models, saved
from semisparse.training.pruning import prune
from semisparse.training.settings import TrainSettings

EXAMPLE = torch.zeros(1, 1, 16, 16)
MASKS = SparsityConfig(0.3, fill="bias", block=2, skip=("1x1",))


def finished(
    out: Path,
    accuracy: float,
    *,
    pruned: bool = False,
    masked: bool = False,
    example: torch.Tensor = EXAMPLE,
    whole: bool = False,
) -> nn.Module:
    """A run folder as training leaves it."""
    out.mkdir(parents=True)
    torch.manual_seed(0)
    model = models.create("semisparse/resnet8", 10, input_channels=1).eval()
    if pruned:
        prune(model, example, 0.5)
    masks = MASKS if masked else None
    settings = TrainSettings(model="semisparse/resnet8", data="digits", sparsity=masks, whole=whole)
    sparsifier = Sparsifier(model, example, masks, 1) if masks else None
    if sparsifier:
        sparsifier.freeze()
    (out / "config.json").write_text(json.dumps(settings.to_dict()))
    (out / "result.json").write_text(json.dumps({"test_accuracy": accuracy}))
    saved.save(
        out / "model.pt",
        model,
        architecture="semisparse/resnet8",
        num_classes=10,
        example_input=example,
        normalisation=((0.0,), (1.0,)),
        sparsifier=sparsifier,
    )
    export_onnx(model, example, out / "model.onnx", verify=False)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    finished(folder / "dense", 0.9)
    finished(folder / "masked", 0.88, masked=True)
    finished(folder / "both", 0.8625, masked=True, pruned=True)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_figures_are_those_of_the_runs(invoke, runs, tmp_path):
    result = invoke(
        "compare", runs["dense"], runs["masked"], runs["both"], "--no-latency", "--json", "-"
    )
    figures = json.loads(result.stdout)
    assert figures["data"] == "digits"
    dense, masked, both = figures["runs"]
    assert [run["name"] for run in figures["runs"]] == ["dense", "masked", "both"]
    assert [run["accuracy"] for run in figures["runs"]] == [0.9, 0.88, 0.8625]
    counter = FlopCounterMode(display=False)
    with counter:
        models.create("semisparse/resnet8", 10, input_channels=1).eval()(EXAMPLE)
    assert dense["flops"] == counter.get_total_flops()
    assert (dense["skipped"], dense["pruned"], dense["masks"]) == (0, 0, "")
    assert masked["masks"] == "0.3 bias, block 2, not on 1x1"
    assert 0.25 < masked["skipped"] < 0.35
    assert masked["flops"] == pytest.approx((1 - masked["skipped"]) * dense["flops"])
    # 16, 32 and 64 channels become 8, 16 and 32.
    assert both["pruned"] == pytest.approx(0.5)
    assert both["flops"] < 0.3 * masked["flops"]
    assert all(run["latency"] is None for run in figures["runs"])
    assert [run["input"] for run in figures["runs"]] == 3 * ["16x16"]


def test_exported_models_are_timed_in_turns(invoke, runs, tmp_path):
    page, document = tmp_path / "compare.html", tmp_path / "compare.md"
    figures = tmp_path / "compare.json"
    files = ["--html", page, "--markdown", document, "--json", figures]
    result = invoke("compare", runs["dense"], runs["both"], "--rounds", 3, *files)
    dense, both = json.loads(figures.read_text())["runs"]
    assert dense["speedup"] == {"low": 1, "median": 1, "high": 1}
    for run in (dense, both):
        assert 0 < run["latency"]["low"] <= run["latency"]["median"] <= run["latency"]["high"]
    text, table = page.read_text(), document.read_text()
    assert "speedup over dense" in text
    assert "speedup over dense" in table
    for shown in ("86.25%", f"{both['speedup']['median']:.2f}x"):
        assert shown in text
        assert shown in table
        assert shown in result.stdout
    assert "latency, ms" in text
    assert "http" not in text


def test_without_latency_nothing_is_said_of_it(invoke, runs, tmp_path):
    page = tmp_path / "compare.html"
    result = invoke("compare", runs["dense"], runs["masked"], "--no-latency", "--html", page)
    assert "speedup" not in result.stdout
    assert "latency, ms" not in page.read_text()


@pytest.mark.parametrize(
    ("width", "whole", "other"),
    [(24, False, "16x24"), (24, True, "16x24 whole"), (16, True, "16x16 whole")],
)
def test_what_a_run_sees_is_shown_where_it_is_not_what_the_others_see(
    invoke, runs, tmp_path, width, whole, other
):
    finished(tmp_path / "other", 0.85, example=torch.zeros(1, 1, 16, width), whole=whole)
    page, document = tmp_path / "compare.html", tmp_path / "compare.md"
    options = ["--no-latency", "--html", page, "--markdown", document]
    result = invoke("compare", runs["dense"], tmp_path / "other", *options)
    for text in (result.stdout, page.read_text(), document.read_text()):
        assert "input" in text
        assert re.findall(r"16x\d\d(?: whole)?", text) == ["16x16", other]

    result = invoke("compare", runs["dense"], runs["masked"], *options)
    for text in (result.stdout, page.read_text(), document.read_text()):
        assert "input" not in text
        assert "16x16" not in text


def test_runs_of_one_name_are_told_apart_by_their_paths(invoke, runs, tmp_path):
    other = shutil.copytree(runs["dense"], tmp_path / "dense")
    result = invoke("compare", runs["dense"], other, "--no-latency", "--json", "-")
    names = [run["name"] for run in json.loads(result.stdout)["runs"]]
    assert names == [str(runs["dense"]), str(other)]


def test_what_cannot_be_compared_is_one_error(refused, runs, tmp_path):
    dense = runs["dense"]

    def damaged(name: str) -> Path:
        return shutil.copytree(runs["masked"], tmp_path / name)

    assert "given twice" in refused("compare", dense, dense.parent / "masked" / ".." / "dense")
    assert "not a run folder" in refused("compare", dense, tmp_path)
    unfinished = damaged("unfinished")
    (unfinished / "result.json").unlink()
    assert f"--resume {unfinished}" in refused("compare", dense, unfinished)
    torn = damaged("torn")
    (torn / "result.json").write_text('{"test_acc')
    assert "result.json cannot be read" in refused("compare", dense, torn)
    foreign = damaged("foreign")
    (foreign / "result.json").write_text("[]")
    assert "result.json cannot be read" in refused("compare", dense, foreign)
    lost = damaged("lost")
    (lost / "model.onnx").unlink()
    assert f"semisparse export --run {lost}" in refused("compare", dense, lost)
    (lost / "model.onnx").write_bytes(b"nothing of ours")
    assert "model.onnx" in refused("compare", dense, lost)
    other = damaged("other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "data": "fashion-mnist"}))
    assert "dense was tested on digits and other on fashion-mnist" in refused(
        "compare", dense, other
    )
    assert "is a folder" in refused("compare", dense, "--html", tmp_path)
    stranger = damaged("stranger")
    torch.save({"state_dict": {}}, stranger / "model.pt")
    assert "model.pt is not what a run" in refused("compare", dense, stranger)
