"""The benchmark against real engines, and what it says when one is missing or wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from semisparse.bench import compare as comparing
from semisparse.bench import harness, memory, tables
from semisparse.bench.compare import Run, compare
from semisparse.bench.layers import LayerTime, profile
from semisparse.bench.machine import Peak, measure_peak
from semisparse.bench.models import Floats, Model, prepare
from semisparse.bench.peers import PEERS, Peer
from semisparse.cli import app
from semisparse.errors import ConfigError, ExportError

NAME = "semisparse/resnet8"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache: Path) -> Model:
    return prepare(NAME, cache, sparsities=[0, 0.3], fills=["nearest"], image_size=32)


@pytest.fixture(scope="module")
def dense(model: Model) -> Model:
    """The model without our files, so that what is tested needs no operator library."""
    return dataclasses.replace(model, variants=())


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "measure_peak", lambda threads: Peak(threads, 1e11, 1e10))


def command(*args: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, args)], env={"COLUMNS": "200"})


def peer(name: str, output: Callable[[Model], Floats], package: str = "numpy") -> Peer:
    return Peer(name, (package,), lambda model, threads: lambda: output(model))


@pytest.mark.parametrize("name", PEERS)
def test_every_engine_computes_what_torch_does(name: str, dense: Model) -> None:
    assert PEERS[name].missing() == [], "extra bench is not installed"
    # Compiling takes most of a minute, and knows the thread count as eager execution does.
    for threads in (1,) if name == "torch-compile" else (1, 2):
        run = PEERS[name].load(dense, threads)
        np.testing.assert_allclose(run(), dense.expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(run(), dense.expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("known_peak")
def test_an_engine_that_is_absent_fails_or_errs_is_named_and_not_timed(dense: Model) -> None:
    def fail(model: Model) -> Floats:
        raise RuntimeError("no such operator")

    run = compare(
        dense,
        [
            PEERS["onnxruntime"],
            peer("absent", lambda model: model.expected, package="no-such-package"),
            peer("failing", fail),
            peer("rounding", lambda model: model.expected.astype(np.float16).astype(np.float32)),
            peer("undefined", lambda model: model.expected * np.float32("nan")),
        ],
        threads=1,
        rounds=2,
        warmup=1,
    )
    assert [row.name for row in run.rows] == ["onnxruntime"]
    assert run.missing.keys() == {"absent", "failing", "rounding", "undefined"}
    assert "not installed: no-such-package" in run.missing["absent"]
    assert "no such operator" in run.missing["failing"]
    assert "differs from torch" in run.missing["rounding"]
    assert "nan" in run.missing["undefined"]
    (table,) = tables.model_tables(harness.ModelResult("model", (1, 3, 32, 32), 10**9, (run,)))
    text = table.markdown()
    for name, reason in run.missing.items():
        assert f"{name}: missing" in text
        assert reason in text


@pytest.mark.usefixtures("known_peak")
def test_figures_of_a_row_follow_from_its_samples(dense: Model) -> None:
    run = compare(dense, [PEERS["onnxruntime"]], threads=1, rounds=3, warmup=1)
    (row,) = run.rows
    assert len(row.samples) == 3
    assert row.latency.median == sorted(row.samples)[1]
    assert row.speedup["onnxruntime"].median == 1
    assert row.flops == dense.work.flops
    assert row.limit == 1
    assert run.fastest_peer == "onnxruntime"
    (table,) = tables.model_tables(harness.ModelResult("m", (1, 3, 32, 32), row.flops, (run,)))
    assert len([column for column in table.columns if "onnxruntime" in column]) == 1
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["ms (quartiles)"].startswith(f"{row.latency.median * 1e3:.2f} (")
    assert cells["GFLOP/s"] == f"{row.flops / row.latency.median / 1e9:.0f}"
    assert cells["of FMA peak"] == f"{row.flops / row.latency.median / 1e11:.0%}"


def test_our_own_wrong_output_stops_the_benchmark(model: Model) -> None:
    broken = dataclasses.replace(model.variants[1], expected=model.variants[1].expected + 1)
    with pytest.raises(ExportError, match="differs from torch"):
        compare(dataclasses.replace(model, variants=(broken,)), [], threads=1, rounds=1, warmup=1)


def test_peak_grows_with_the_threads() -> None:
    one, two = measure_peak(1), measure_peak(2)
    assert 1e9 < one.flops < 1e12
    assert 1e8 < one.copy < 1e12
    assert two.flops > one.flops


def test_every_layer_of_ours_is_profiled_beside_stock(model: Model) -> None:
    rows = profile(model, model.variants[1], threads=1, rounds=3)
    assert [row.name for row in rows[:-1]] == [
        layer.name for layer in model.variants[1].work.layers
    ]
    assert rows[-1].name == "(other)"
    for row in rows:
        assert row.seconds > 0
        assert row.stock_seconds is not None
        assert row.stock_seconds > 0


def test_a_chain_is_one_row_of_a_profile() -> None:
    weights = ((96, 16, 1, 1), (96, 1, 3, 3), (24, 96, 1, 1))
    name = "features.2.conv.0.0+features.2.conv.1.0+features.2.conv.2"
    chain = LayerTime(name, weights, (56, 56), 0.25, 5 * 10**7, 1e-3, 2e-3)
    run = Run(1, Peak(1, 1e11, 1e10), (), {}, None, 0, {"semisparse 0.25": (chain,)})
    _, table = tables.model_tables(harness.ModelResult("m", (1, 3, 224, 224), 10**9, (run,)))
    (cells,) = table.rows
    assert cells[:3] == ("features.2.conv.0.0+1.0+2", "96x16x1x1+96x1x3x3+24x96x1x1", "56x56")
    assert cells[-1] == "2.00"


def test_sessions_are_measured_in_fresh_processes(model: Model) -> None:
    footprints = memory.measure(model, threads=1, repeats=1)
    assert [footprint.name for footprint in footprints] == [
        "onnxruntime",
        "semisparse 0",
        "semisparse 0.3 nearest",
    ]
    for footprint in footprints:
        assert footprint.create_seconds > 0
        assert footprint.peak_bytes > model.dense.stat().st_size


def test_the_command_writes_every_figure_and_sample(cache: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "new" / "out.json", tmp_path / "out.md"
    result = command(
        NAME, "--quick", "--image-size", 32, "--fill", "nearest", "--block", 1, "auto", "--rounds", 2,
        "--threads", 1, 2, "--peers", "onnxruntime,torch-eager", "--layers", "--memory",
        "--cache", cache, "--json", out, "--markdown", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = json.loads(out.read_text())
    assert results["version"] == 2
    assert results["settings"]["threads"] == [1, 2]
    assert results["machine"]["kernels"]
    assert results["peer_versions"]["onnxruntime"]["onnxruntime"]
    (model,) = results["models"]
    assert [run["threads"] for run in model["runs"]] == [1, 2]
    names = [
        "onnxruntime", "torch-eager", "semisparse 0", "semisparse 0.3 nearest",
        "semisparse 0.3 nearest block auto",
    ]  # fmt: skip
    for run in model["runs"]:
        assert [row["name"] for row in run["rows"]] == names
        assert [row["block"] for row in run["rows"]] == [None, None, None, 1, "auto"]
        assert all(len(row["samples"]) == 2 for row in run["rows"])
        assert run["layers"].keys() == set(names[2:])
        assert len(run["memory"]) == 4
    for name in names:
        assert name in page.read_text()
        assert name in result.output
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "out.json", "out.md"}


def test_json_on_standard_output_is_all_of_it(cache: Path) -> None:
    result = command(
        NAME, "--quick", "--image-size", 32, "--fill", "nearest", "--cache", cache, "--json", "-"
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results["models"][0]["name"] == NAME
    assert results["settings"]["image_size"] == 32


def test_height_and_width_are_in_title_and_figures(cache: Path, tmp_path: Path) -> None:
    result = command(
        NAME, "--quick", "--rounds", 1, "--image-size", "24x40", "--fill", "nearest",
        "--cache", cache, "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1x3x24x40, 1 thread" in result.output
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["settings"]["image_size"] == "24x40"
    assert results["models"][0]["input_shape"] == [1, 3, 24, 40]


def test_an_exported_file_is_timed_against_its_portable_body(model: Model, cache: Path) -> None:
    result = command(model.variants[1].path, "--quick", "--peers", "onnxruntime", "torch-eager",
                     "--cache", cache)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "torch-eager: missing" in result.output
    assert "needs the torch model" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--peers", "onnxruntime", "tensorrt"), "There is no peer 'tensorrt'"),
        (("--fill", "zero"), "There is no fill 'zero'"),
        (("--image-size", "wide"), "image_size is 'wide'; give HEIGHTxWIDTH"),
        (("--chains", "none"), "There is no kind of chains 'none'"),
        (("--sparsity", "0", "resnet50"), "give numbers, and the models before them"),
        (("--threads", "0"), "threads is 0"),
        (("--block", "1", "0"), "blocks is 0"),
        (("--block", "4", "4"), "different values"),
        (("--threads", "1.5"), "--threads is 1.5"),
        (("--threads", "1", "1"), "different values"),
        (("--rounds", "0"), "rounds is 0"),
        (("--json", "/proc/out.json"), "/proc/out.json cannot be written"),
        (("--markdown", "/"), "it is a folder"),
        (("--cache", "/proc/cache"), "/proc/cache/model cannot be written"),
    ],
)
def test_bad_arguments_are_one_sentence(args: tuple[str, ...], words: str) -> None:
    result = command(NAME, *args)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_without_the_operator_library_nothing_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(tmp_path / "absent.so"))
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "semisparse", "bench", NAME, "--quick", "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "absent.so" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_settings_refuse_an_empty_list() -> None:
    with pytest.raises(ConfigError, match="models is"):
        harness.Settings(models=())


def test_a_run_is_spoilt_when_others_take_the_cpu(dense: Model, known_peak: None) -> None:
    run = compare(dense, [PEERS["onnxruntime"]], threads=1, rounds=2, warmup=1)

    def notes(cores: float) -> str:
        row = dataclasses.replace(run.rows[0], cores=cores)
        changed: Run = dataclasses.replace(run, rows=(row,))
        result = harness.ModelResult("model", (1, 3, 32, 32), 10**9, (changed,))
        return " ".join(tables.model_tables(result)[0].notes)

    assert "spoilt" in notes(0.6)
    assert "spoilt" not in notes(1.0)
