from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semisparse.cli import app

QUICK = ("--epochs", "1", "--sparsity", "0.3", "--threads", "1", "--rounds", "2")
QUICK += ("--image-size", "64x96")


def demo(out: Path, *arguments: str):
    return CliRunner().invoke(app, ["demo", "--out", str(out), *QUICK, *arguments])


def files(out: Path) -> dict[Path, int]:
    """Times of everything that the report is made of."""
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.suffix != ".html"}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    result = demo(out, "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_the_figures_are_of_both_engines_and_all_sparsities(first):
    out, figures = first
    rows = figures["rows"]
    assert [(row["engine"], row["sparsity"]) for row in rows] == [
        ("ONNX Runtime", 0.0),
        ("semisparse", 0.0),
        ("semisparse", 0.3),
    ]
    assert rows[0]["speedup"] == 1
    assert "ResNet18 at 64x96," in figures["facts"]["latency"]
    assert rows[2]["limit"] == pytest.approx(1 / 0.7)
    for row in rows:
        low, high = row["latency_quartiles"]
        assert 0 < low <= row["latency"] <= high
    # The engines compute the same function, so what they say of an image is the same.
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    for run in (out / "training").glob("*/*"):
        trained = json.loads((run / "result.json").read_text())["test_accuracy"]
        assert any(row["accuracy"] == pytest.approx(trained, abs=0.003) for row in rows)


def test_the_report_shows_the_masks_of_every_layer(first):
    _, figures = first
    html = Path(figures["report"]).read_text()
    assert html.count('class="mask"') == 9
    for name in ("stem.0", "layer1.0.conv1", "layer3.0.downsample.0"):
        assert f"<figcaption>{name}</figcaption>" in html.replace("<wbr>", "")


def test_a_second_demo_only_writes_the_report_again(first):
    out, figures = first
    before = files(out)
    result = demo(out)
    assert result.exit_code == 0, result.output
    assert files(out) == before
    assert f"{figures['rows'][2]['latency']:.2f}" in result.stdout


def test_an_interrupted_demo_does_what_is_missing_and_changed_settings_are_not_mixed(first):
    out, _ = first
    before = files(out)
    (sparse,) = (out / "training").glob("*/sparsity-0.3")
    for name in ("result.json", "model.onnx"):
        (sparse / name).unlink()
    result = demo(out, "--rounds", "1")
    assert result.exit_code == 0, result.output
    after = files(out)
    remade = {path for path in before if before[path] != after[path]}
    assert sparse / "result.json" in remade
    assert all(path.is_relative_to(sparse) for path in remade)
    assert len(list(out.glob("latency-*.json"))) == 2
    assert {path for path in after if path not in before and path.is_relative_to(sparse)} == {
        path for path in after if path not in before and "tfevents" in path.name
    }


def test_blocks_are_other_masks_beside_the_first(first):
    out, figures = first
    before = files(out)
    result = demo(out, "--block", "1", "--json")
    assert result.exit_code == 0, result.output
    assert "block 1" in json.loads(result.stdout)["facts"]["masks"]
    after = files(out)
    assert {path: after[path] for path in before} == before
    headers = {path for path in after if path not in before and path.name == "masks.h"}
    assert len(headers) == 1
    assert len(list(out.glob("latency-*.json"))) == 1 + len(
        [path for path in before if path.name.startswith("latency-")]
    )
    assert "block 4" in figures["facts"]["masks"]


def test_fresh_starts_over(first, monkeypatch):
    out, _ = first
    # The exports of ResNet18 take most of the time, and the first demo has made them.
    module = importlib.import_module("semisparse.cli.demo")
    monkeypatch.setattr(module, "_TIMED_MODEL", "semisparse/resnet8")
    (dense,) = (out / "training").glob("*/dense")
    (dense / "result.json").write_text('{"damaged": true}')
    result = demo(out, "--fresh")
    assert result.exit_code == 0, result.output
    assert "test_accuracy" in json.loads((dense / "result.json").read_text())


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = demo(tmp_path / "file")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    for size in ("31x64", "wide"):
        result = demo(tmp_path / "out", "--image-size", size)
        assert result.exit_code == 1
        assert f"'{size}'" in result.stderr
        assert not (tmp_path / "out").exists()
    result = demo(tmp_path / "out", "--sparsity", "1.5")
    assert result.exit_code == 1
    assert "1.5" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "training").exists()
