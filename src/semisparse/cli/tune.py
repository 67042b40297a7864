"""`semisparse tune`: the sparsity of each layer that costs least at a wanted latency."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semisparse.cli import options, trained
from semisparse.cli.console import print_table, still_bar, tables_console
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from torch import Tensor, nn

    from semisparse.bench.tables import Table
    from semisparse.bench.timing import Timing
    from semisparse.cli.trained import Data
    from semisparse.tune.latency import Settings
    from semisparse.tune.search import Masked, Tuner
    from semisparse.tune.table import LatencyTable

# A drop of half a point is seen on more images than what a layer changes.
_PER_IMAGE = 4
_GOAL = "Goal, one of them"
_TIMING = "Latencies"


def tune(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision/NAME or NAME, timm/NAME, module.path:factory, the folder of a "
            "finished run without masks, or with --measure-only an exported .onnx file."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The SparsityConfig to write, or the table with --measure-only.")
    ] = Path("sparsity.json"),
    target_speedup: Annotated[
        float | None, typer.Option(help="Over the model without masks.", rich_help_panel=_GOAL)
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of one image.", rich_help_panel=_GOAL)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy, without training, on validation images.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    weights: options.TrainedWeights = None,
    num_classes: options.TrainedClasses = 1000,
    data: Annotated[
        str | None,
        typer.Option(
            help="imagefolder:PATH, with or without labels, or a name as for train; by default "
            "that of the run.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    images: Annotated[
        int,
        typer.Option(
            min=2,
            help="At most, for what each layer costs; four times as many tell the accuracy.",
            rich_help_panel=options.MODEL,
        ),
    ] = 500,
    image_size: options.TrainedSize = None,
    whole: options.TrainedWhole = None,
    max_unreadable: options.MaxUnreadable = 0.01,
    fill: options.Fill = "nearest",
    importance: options.Importance = SparsityConfig.importance,
    block: options.Block = "auto",
    skip: options.Skip = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the masks.", rich_help_panel=options.MASKS)
    ] = 0,
    sparsities: Annotated[
        str | None,
        typer.Option(
            help="To choose from, separated by commas. (default: 0.1 to 0.7 in steps of 0.1)",
            rich_help_panel=_TIMING,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="That the model will run with.", rich_help_panel=_TIMING)
    ] = 1,
    rounds: Annotated[
        int, typer.Option(help="Samples of each layer.", rich_help_panel=_TIMING)
    ] = 30,
    latencies: Annotated[
        Path | None,
        typer.Option(
            help="Table that --measure-only wrote on the machine where the model will run.",
            rich_help_panel=_TIMING,
        ),
    ] = None,
    measure_only: Annotated[
        bool,
        typer.Option(
            "--measure-only",
            help="Measure the latencies of an exported .onnx file here, without torch.",
            rich_help_panel=_TIMING,
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Choose the sparsity of each layer: the least change of the outputs at a wanted latency.

    Measures what masks save in each layer on this machine, or reads that of another; measures how
    far the outputs move with each layer masked alone; solves for the best choice; and puts its
    masks on once to see whether it keeps what it promises. What was measured is kept beside the
    result, in a folder with the ending .tune, from which an interrupted command goes on.

    \b
    Examples:
      semisparse tune runs/dense --target-speedup 1.3 --out sparsity.json
      semisparse tune torchvision/resnet18 --weights DEFAULT --data imagefolder:photos \\
          --latency-ms 15 --out sparsity.json
      semisparse tune model.onnx --measure-only --out latencies.json
      semisparse tune runs/dense --max-drop 0.5 --latencies latencies.json
    """
    from rich.console import Console

    from semisparse.bench.files import time_files
    from semisparse.files import check_writable, writing
    from semisparse.tune.latency import SPARSITIES, Settings

    settings = Settings(
        sparsities=SPARSITIES if sparsities is None else _numbers(sparsities),
        fill=fill,
        block=block,
        threads=threads,
        rounds=rounds,
    )
    goals = {"speedup": target_speedup, "milliseconds": latency_ms, "drop": max_drop}
    goal = {name: value for name, value in goals.items() if value is not None}
    work = out.with_suffix(".tune")
    console = Console(stderr=True)
    for path in (out, work / "latencies.json"):
        check_writable(path)
    if measure_only:
        if goal or latencies is not None:
            raise ConfigError("--measure-only has no goal and no --latencies; leave them out.")
        if not model.endswith(".onnx"):
            raise ConfigError(
                f"--measure-only takes an exported .onnx file, not {model}; export it with "
                "semisparse export."
            )
        table = _measured(Path(model), settings, work, console)
        table.save(out)
        if as_json:
            typer.echo(out.read_text(encoding="utf-8"), nl=False)
        else:
            console.print(f"{out}: {len(table.units)} layers or chains, {_ms(table.seconds)} ms")
        return
    _check_goal(goal)
    given = options.given(ctx).keys() & {"fill", "block", "sparsities", "threads", "rounds"}
    if latencies is not None and given:
        raise ConfigError(
            f"--{min(given)} is decided by --latencies; leave it out, or measure again with it."
        )

    network, batch, source = trained.load(
        *(model, weights, num_classes, data, data_root, image_size, whole),
        *(images, max_unreadable),
        option="--data",
    )
    validation = _validation(source, _PER_IMAGE * images, network, batch)
    dense = _export(network, batch[:1], work / "dense.onnx", console)
    if latencies is None:
        table = _measured(dense, settings, work, console)
    else:
        table = _read(latencies, dense)
    config = SparsityConfig(
        0.5, skip=tuple(skip or ()), fill=table.fill, importance=importance, seed=seed
    )
    tuner, reasons = _tuner(network, batch, validation, config, table, work, console)
    with still_bar(console) as bar:
        bar.stage("choosing")
        masked = _reach(tuner, goal, bar.sampled)
    tuned = _export(masked.model, batch[:1], work / "tuned.onnx", console)
    measured = None
    if latencies is None:
        with still_bar(console) as bar:
            bar.stage("timing the result")
            measured = time_files(
                {"dense": dense, "tuned": tuned}, settings.threads, settings.rounds, bar.sampled
            )
    with writing(out) as draft:
        draft.write_text(masked.config.to_json() + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(_figures(out, tuner, masked, reasons, measured), indent=2))
        return
    printed = tables_console()
    print_table(printed, _choices(tuner, masked, reasons))
    print_table(printed, _kept(tuner, masked, measured))
    printed.print(
        f"{out}: for --sparsity-config of train, apply and export; masked without training: "
        f"{tuned}",
        highlight=False,
        soft_wrap=True,
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(item) for item in text.split(",")}))
    except ValueError as error:
        raise ConfigError(
            f"--sparsities is {text}; give numbers between 0 and 1, separated by commas."
        ) from error


def _check_goal(goal: dict[str, float]) -> None:
    if len(goal) != 1:
        raise ConfigError("Give one goal: --target-speedup, --latency-ms or --max-drop.")
    ((kind, value),) = goal.items()
    least = {"speedup": 1.0, "milliseconds": 0.0, "drop": 0.0}[kind]
    if not least < value < float("inf"):
        raise ConfigError(f"The goal is {value:g}; give a number above {least:g}.")


def _measured(path: Path, settings: Settings, work: Path, console: Console) -> LatencyTable:
    """The table of this machine, which is in the folder `work` as well, from part to part."""
    from semisparse.tune import latency

    with still_bar(console) as bar:
        bar.stage("latencies")
        return latency.measure(path, settings, work / "latencies.json", bar.sampled)


def _read(latencies: Path, dense: Path) -> LatencyTable:
    from semisparse.tune.latency import check_fits
    from semisparse.tune.table import LatencyTable

    table = LatencyTable.load(latencies)
    check_fits(table, latencies, dense)
    return table


def _export(model: nn.Module, example: Tensor, path: Path, console: Console) -> Path:
    from semisparse.export import export_onnx

    with console.status(f"exporting {path}"):
        export_onnx(model, example, path)
    return path


def _validation(
    source: Data, count: int, network: nn.Module, batch: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Images and labels to tell the accuracy by, where the labels are what the model tells."""
    from semisparse.training.calibrate import run

    found = source.validation(count)
    if found is None:
        return None
    images, labels, classes = found
    told = run(network, batch[:1]).shape[-1]
    return (images, labels) if told == classes else None


def _tuner(
    network: nn.Module,
    batch: Tensor,
    validation: tuple[Tensor, Tensor] | None,
    config: SparsityConfig,
    table: LatencyTable,
    work: Path,
    console: Console,
) -> tuple[Tuner, dict[str, str]]:
    """With the costs of all options that are open, and why others are not, by unit."""
    from semisparse.tune import sensitivity
    from semisparse.tune.cache import Cache
    from semisparse.tune.search import Tuner

    allowed = sensitivity.maskable(network, batch[:1], config)
    reasons = {}
    open_ones = []
    for unit in table.units:
        own = [option for option in unit.options if allowed.issuperset(option.layers)]
        paying = [option for option in own if option.pays]
        open_ones += [(unit, option) for option in paying]
        if not unit.options:
            reasons[unit.name] = "has no room for masks"
        elif not own:
            reasons[unit.name] = "skipped, too small, or merged of several"
        elif not paying:
            best = max(own, key=lambda option: option.saved)
            reasons[unit.name] = f"masks save {best.saved:.0%} \u00b1 {best.noise:.0%} at best"
    with still_bar(console) as bar:
        bar.stage("sensitivities")
        cache = Cache(work / "sensitivities.json", sensitivity.key(network, batch, config))
        costs = sensitivity.measure(network, batch, open_ones, config, cache, bar.sampled)
    return Tuner(network, batch, validation, config, table, costs), reasons


def _reach(tuner: Tuner, goal: dict[str, float], progress: Callable[[int, int], object]) -> Masked:
    ((kind, value),) = goal.items()
    if kind == "drop":
        return tuner.at_drop(value, progress)
    return tuner.at_latency(value / 1e3 if kind == "milliseconds" else tuner.table.seconds / value)


def _choices(tuner: Tuner, masked: Masked, reasons: dict[str, str]) -> Table:
    from semisparse.bench.tables import Table

    rows = []
    for unit in tuner.table.units:
        height, width = unit.planes[-1]
        others = f" and {len(unit.layers) - 1} before" if len(unit.layers) > 1 else ""
        row = [unit.layers[-1] + others, f"{height}x{width}", _ms(unit.seconds)]
        option = masked.taken.get(unit.name)
        if option is None:
            reason = reasons.get(unit.name, "costs more than others for what it saves")
            row += ["dense", "", "", "", reason]
        else:
            part = "its expansion too" if len(option.layers) > 1 else ""
            row += [
                f"{option.sparsity:g}",
                f"{option.block}",
                f"{option.saved:.0%}",
                f"{tuner.costs[unit.name, option]:.4f}",
                part,
            ]
        rows.append(tuple(row))
    machine = tuner.table.machine["cpu"]
    return Table(
        f"{machine}, {_threads(tuner.table.threads)}",
        ("layer", "plane", "dense ms", "sparsity", "block", "saved", "divergence", ""),
        tuple(rows),
    )


def _kept(tuner: Tuner, masked: Masked, measured: Timing | None) -> Table:
    from semisparse.bench.tables import Table

    dense = tuner.table.seconds
    rows = [
        (
            "speedup",
            f"{dense / masked.seconds:.3f}",
            f"{measured.speedup('tuned', over='dense').median:.3f}" if measured else "",
        ),
        (
            "latency, ms",
            _ms(masked.seconds),
            _ms(measured.latency("tuned").median) if measured else "",
        ),
        (
            "divergence of the outputs, nats",
            f"{masked.predicted:.4f}",
            f"{masked.applied.change.divergence:.4f}",
        ),
        ("images of another class, %", "", f"{100 - 100 * masked.applied.change.agreement:.1f}"),
    ]
    notes = []
    if masked.drop is not None:
        drop = masked.drop
        rows.append(("drop of accuracy, points", "", f"{drop.points:.2f} \u00b1 {drop.error:.2f}"))
        notes.append(
            f"Accuracy on {drop.images} validation images: {drop.accuracy:.1f}% without masks."
        )
    if measured is None:
        notes.append("The latencies are another machine's; time the masked file there.")
    elif measured.disturbed:
        notes.append("Other programs took processor time; the latencies are too high.")
    return Table("without training", ("", "predicted", "measured"), tuple(rows), tuple(notes))


def _figures(
    out: Path, tuner: Tuner, masked: Masked, reasons: dict[str, str], measured: Timing | None
) -> dict[str, Any]:
    dense = tuner.table.seconds
    units = [
        {
            "layers": unit.layers,
            "seconds": unit.seconds,
            "masked": dataclasses.asdict(masked.taken[unit.name])
            if unit.name in masked.taken
            else None,
            "reason": reasons.get(unit.name),
        }
        for unit in tuner.table.units
    ]
    return {
        "path": str(out),
        "units": units,
        "predicted": {
            "seconds": masked.seconds,
            "speedup": dense / masked.seconds,
            "divergence": masked.predicted,
        },
        "measured": {
            "seconds": measured.latency("tuned").median if measured else None,
            "speedup": dataclasses.asdict(measured.speedup("tuned", over="dense"))
            if measured
            else None,
            "change": dataclasses.asdict(masked.applied.change),
            "drop": dataclasses.asdict(masked.drop) if masked.drop else None,
        },
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
