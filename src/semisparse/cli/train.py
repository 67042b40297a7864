"""`semisparse train`: a classifier trained with masks, tested and exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from semisparse.training.settings import TrainSettings


def train(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="torchvision/NAME, timm/NAME, semisparse/resnet8, or module.path:factory."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, fashion-mnist, or imagefolder:PATH.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must not exist.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder.")
    ] = None,
    sparsity: Annotated[
        float, typer.Option(help="Fraction of positions to mask; 0 trains a dense model.")
    ] = 0.0,
    fill: Annotated[
        str, typer.Option(help="What masked positions hold: nearest or bias.")
    ] = "nearest",
    block: Annotated[
        int,
        typer.Option(
            help="Side of the squares of positions that are masked as a whole; 4 is fastest "
            "where a model has many 3x3 convolutions."
        ),
    ] = 1,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Layers left dense: 1x1, depthwise, or a name pattern; repeatable."),
    ] = None,
    selection: Annotated[
        str, typer.Option(help="Which draw of masks is kept: best_loss, last or first.")
    ] = "best_loss",
    weights: Annotated[
        str | None, typer.Option(help="State dict, safetensors file, or DEFAULT (downloads).")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Where the data set is.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width; 32, for image folders 224.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="At the start; falls to 1% of it.")] = 0.1,
    schedule: Annotated[str, typer.Option(help="How it falls: cosine or linear.")] = "cosine",
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="On weights only.")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, image order and masks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Train a classifier with masks, test it, and export model.onnx and masks.h.

    \b
    Examples:
      semisparse train --model semisparse/resnet8 --data digits --sparsity 0.2 --out runs/digits
      semisparse train --model torchvision/resnet18 --data imagefolder:flowers --sparsity 0.3 \\
          --skip 1x1 --epochs 60 --out runs/flowers
      semisparse train --resume runs/flowers
    """
    from rich.console import Console
    from rich.table import Table

    from semisparse.training import run, settings

    if resume is not None:
        options = settings.read(resume)
        _refuse_changes(ctx, resume, options)
        folder = resume
    else:
        if model is None or data is None or out is None:
            raise ConfigError(
                "A new run needs --model, --data and --out; to go on with one, give --resume."
            )
        masks = None
        if sparsity != 0:
            masks = SparsityConfig(
                sparsity,
                skip=tuple(skip or ()),
                fill=fill,
                block=block,
                selection=selection,
                seed=seed,
            )
        options = settings.TrainSettings(
            model=model,
            data=data,
            sparsity=masks,
            weights=weights,
            data_root=data_root,
            image_size=image_size,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            workers=workers,
            seed=seed,
        )
        folder = out
    result = run.train(options, folder, resume=resume is not None)
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **dataclasses.asdict(result)}, indent=2))
        return
    table = Table("layer", "sparsity")
    for name, value in result.sparsities.items():
        table.add_row(name, f"{value:.3f}")
    console = Console()
    if result.sparsities:
        console.print(table)
    console.print(f"test accuracy {100 * result.test_accuracy:.2f}%, run folder {folder}")


def _refuse_changes(ctx: typer.Context, folder: Path, options: TrainSettings) -> None:
    """A resumed run keeps its settings: options given beside --resume must repeat them."""
    stored: dict[str, Any] = {
        "out": folder,
        **options.to_dict(),
        **(options.sparsity.to_dict() if options.sparsity else {"sparsity": 0.0}),
    }
    changed = [
        f"--{name.replace('_', '-')} {value}, not {stored[name]}"
        for name, value in ctx.params.items()
        # By name: typer carries its own copy of click, whose enumeration is another type.
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
        and name in stored
        and value != stored[name]
    ]
    if changed:
        raise ConfigError(
            f"The run in {folder} has other settings ({'; '.join(changed)}); resume it with its "
            "own, or start a new run with --out."
        )
