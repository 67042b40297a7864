"""`semisparse compare`: accuracy, operations and measured latency of finished runs side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semisparse.cli.console import print_table, still_bar, tables_console
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from semisparse.bench.timing import Timing
    from semisparse.config import SparsityConfig
    from semisparse.report import Comparison, Run
    from semisparse.training.settings import TrainSettings

FORMAT_VERSION = 1


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of finished runs on the same data; the first is the baseline."
        ),
    ],
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time the exported models.")
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="Of the timing.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each run.")] = 30,
    html: Annotated[Path | None, typer.Option(help="Write a page with table and charts.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the figures; - prints them.")
    ] = None,
    markdown_path: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table.")
    ] = None,
) -> None:
    """Compare finished runs: test accuracy, operations, and latency, timed in turns.

    \b
    Examples:
      semisparse compare runs/dense runs/masked runs/pruned --html compare.html
      semisparse compare runs/* --no-latency --json -
    """
    from semisparse.files import check_writable, writing
    from semisparse.report import comparison_table, render_comparison

    to_stdout = json_path == Path("-")
    written = [None if to_stdout else json_path, markdown_path]
    for path in filter(None, (html, *written)):
        check_writable(path)
    comparison = _comparison(_named(runs), threads if latency else None, rounds)
    table = comparison_table(comparison)
    figures = json.dumps({"version": FORMAT_VERSION, **dataclasses.asdict(comparison)}, indent=2)
    if html is not None:
        render_comparison(comparison, html)
    for target, content in zip(written, (figures + "\n", table.markdown()), strict=True):
        if target is not None:
            with writing(target) as draft:
                draft.write_text(content, encoding="utf-8")
    if to_stdout:
        typer.echo(figures)
        return
    console = tables_console()
    print_table(console, table)
    if html is not None:
        console.print(f"page: {html}", highlight=False, soft_wrap=True)


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by what tells them apart: their own names, or else their paths."""
    for place, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:place]}:
            raise ConfigError(f"The run {folder} is given twice; give every run once.")
    named = {folder.resolve().name: folder for folder in folders}
    return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def _comparison(folders: Mapping[str, Path], threads: int | None, rounds: int) -> Comparison:
    from semisparse.report import Comparison
    from semisparse.training import settings

    options = {name: settings.read(folder) for name, folder in folders.items()}
    accuracies = {name: _accuracy(folder) for name, folder in folders.items()}
    first, *others = options
    data = options[first].data
    for name in others:
        if options[name].data != data:
            raise ConfigError(
                f"The run {first} was tested on {data} and {name} on {options[name].data}, so "
                "their accuracies do not compare; give runs on one data set."
            )
    compared = [_run(name, folders[name], options[name], accuracies[name]) for name in folders]
    facts = {"accuracy": "of one training each, so without its spread over seeds"}
    if threads is not None:
        from semisparse.bench import machine

        described = machine.describe()
        timing = _time(folders, threads, rounds)
        compared = [
            dataclasses.replace(
                run,
                latency=timing.latency(run.name),
                speedup=timing.speedup(run.name, over=first),
            )
            for run in compared
        ]
        facts |= _circumstances(described, timing, threads, rounds)
    return Comparison(data, compared, facts)


def _accuracy(folder: Path) -> float:
    path = folder / "result.json"
    try:
        return float(json.loads(path.read_text())["test_accuracy"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"The run in {folder} is not finished, it has no result.json; finish it with "
            f"`semisparse train --resume {folder}`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}: {error}); restore it or train again."
        ) from error


def _run(name: str, folder: Path, options: TrainSettings, accuracy: float) -> Run:
    from semisparse.bench.work import read, work_of
    from semisparse.report import Run
    from semisparse.runtime import InferenceSession
    from semisparse.training import saved

    path = folder / "model.onnx"
    if not path.is_file():
        raise ConfigError(
            f"The run in {folder} has no model.onnx; export it again with `semisparse export --run "
            f"{folder} --out {path}`."
        )
    # Tells what is wrong with a file that is damaged.
    InferenceSession(path, library=False)
    work = work_of(read(path))
    finished = saved.FinishedRun(folder)
    return Run(
        name=name,
        model=finished.architecture,
        input=f"{finished.image_size}{' whole' if options.whole else ''}",
        masks=_words(options.sparsity),
        pruned=finished.pruned,
        accuracy=accuracy,
        flops=work.flops,
        skipped=1 - work.flops / work.dense().flops,
    )


def _words(masks: SparsityConfig | None) -> str:
    if masks is None:
        return ""
    words = [f"{masks.sparsity:g}{' in region' if masks.region else ''} {masks.fill}"]
    if masks.block != 1:
        words.append(f"block {masks.block}")
    if masks.only:
        words.append(f"on {' '.join(masks.only)}")
    if masks.alternate:
        words.append("in turns")
    if masks.skip:
        words.append(f"not on {' '.join(masks.skip)}")
    return ", ".join(words)


def _time(folders: Mapping[str, Path], threads: int, rounds: int) -> Timing:
    """Every run's exported model."""
    from rich.console import Console

    from semisparse.bench.files import time_files

    paths = {name: folder / "model.onnx" for name, folder in folders.items()}
    with still_bar(Console(stderr=True)) as bar:
        bar.stage("timing")
        return time_files(paths, threads, rounds, bar.sampled)


def _circumstances(
    machine: Mapping[str, Any], timing: Timing, threads: int, rounds: int
) -> dict[str, str]:
    facts = {
        "latency": f"float32, one image, {threads} thread{'s' if threads > 1 else ''}, medians of "
        f"{rounds} rounds in which all runs take turns",
        "speedup": "median of the ratios within a round, so that drift of the machine cancels",
        "CPU": f"{machine['cpu']}, {machine['cores']} cores, instruction set {machine['isa']}",
        "versions": ", ".join(f"{name} {value}" for name, value in machine["versions"].items()),
    }
    if timing.disturbed:
        facts["disturbed"] = "other processes took CPU time from some runs, so latencies are spoilt"
    return facts
