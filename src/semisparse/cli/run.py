"""`semisparse run`: one model, one input, its output and latency."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from semisparse.cli import options
from semisparse.cli.console import tables_console
from semisparse.errors import DataError


def run(
    model: Annotated[Path, typer.Argument(help="The .onnx file.")],
    input: Annotated[
        Path | None,
        typer.Option(help="A .npy array, or an .npz with one per input name; else random values."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; all cores if not given.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before those.")] = 3,
    top: Annotated[int, typer.Option(min=0, help="Largest outputs to show.")] = 5,
    seed: options.InputSeed = 0,
    library: Annotated[
        bool, typer.Option(help="Run the library's kernels, or ONNX Runtime's alone.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Run an exported model: its outputs, and its latency with quartiles.

    \b
    Examples:
      semisparse run model.onnx
      semisparse run model.onnx --input image.npy --threads 1 --repeats 100 --json
    """
    import numpy as np
    import onnxruntime
    from rich.table import Table

    from semisparse.bench.timing import Quartiles
    from semisparse.feeds import load_feeds, random_feeds
    from semisparse.runtime import ORT_ERRORS, InferenceSession, library_path

    onnxruntime.set_default_logger_severity(4)  # what it logs as an error, it raises as well
    session = InferenceSession(model, threads=threads, library=library)
    feeds = random_feeds(session, seed) if input is None else load_feeds(session, input)
    seconds = []
    try:
        for _ in range(warmup + repeats):
            start = time.perf_counter()
            outputs = session.run(None, feeds)
            seconds.append(time.perf_counter() - start)
    except ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise DataError(
            f"{model} does not run on {shapes} ({error}); give an input that it was made for."
        ) from error
    latency = Quartiles.of([1e3 * value for value in seconds[warmup:]])

    results: list[dict[str, Any]] = []
    for node, output in zip(session.get_outputs(), outputs, strict=True):
        flat = np.asarray(output[0] if output.ndim > 1 else output).ravel()
        order = np.argsort(-flat, kind="stable")[:top]
        results.append(
            {
                "name": node.name,
                "shape": list(output.shape),
                "top": [{"index": int(i), "value": float(flat[i])} for i in order],
            }
        )
    if as_json:
        report = {
            "model": str(model),
            "library": str(library_path()) if library else None,
            "threads": threads,
            "inputs": {name: list(array.shape) for name, array in feeds.items()},
            "outputs": results,
            "repeats": repeats,
            "latency_ms": {
                "lower_quartile": latency.low,
                "median": latency.median,
                "upper_quartile": latency.high,
            },
        }
        typer.echo(json.dumps(report, indent=2))
        return
    table = Table("output", "shape", f"{top} largest (index: value) of the first image")
    for result in results:
        largest = ", ".join(f"{entry['index']}: {entry['value']:.4g}" for entry in result["top"])
        table.add_row(result["name"], "x".join(map(str, result["shape"])), largest)
    console = tables_console()
    console.print(table)
    count = "all" if threads is None else threads
    console.print(
        f"{latency.median:.3f} ms median of {repeats} runs "
        f"(quartiles {latency.low:.3f} to {latency.high:.3f} ms), "
        f"{count} thread{'' if threads == 1 else 's'}, "
        f"{'with' if library else 'without'} the operator library",
        soft_wrap=True,
    )
