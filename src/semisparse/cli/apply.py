"""`semisparse apply`: masks on a trained model without training, exported as an .onnx file."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semisparse.cli import options, trained
from semisparse.cli.console import tables_console
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from semisparse.training.apply import Applied
    from semisparse.training.self_distillation import Distilled, Recipe


def apply(
    ctx: typer.Context,
    out: options.OnnxFile = Path("model.onnx"),
    header: options.Header = None,
    draws: Annotated[
        int, typer.Option(help="Random masks to try; the ones that change the outputs least stay.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first of them.")] = 0,
    distill_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps of training towards the outputs without masks, on the images; none if 0.",
        ),
    ] = 0,
    distill_rate: Annotated[
        float,
        typer.Option(help="Learning rate of these steps; small networks take up to 5e-4."),
    ] = 2e-5,
    as_json: options.Json = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="torchvision/NAME or NAME, timm/NAME, module.path:factory, or the folder of a "
            "finished run without masks.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    weights: options.TrainedWeights = None,
    num_classes: options.TrainedClasses = 1000,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Data set whose training images, without labels, adjust batch norm: "
            "imagefolder:PATH or a name as for train; by default that of the run.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=2, help="How many of them at most.", rich_help_panel=options.MODEL),
    ] = 500,
    data_root: options.DataRoot = None,
    image_size: options.TrainedSize = None,
    whole: options.TrainedWhole = None,
    max_unreadable: options.MaxUnreadable = 0.01,
    sparsity: options.Sparsity = 0.0,
    fill: options.Fill = SparsityConfig.fill,
    masks: options.Masks = SparsityConfig.masks,
    importance: options.Importance = SparsityConfig.importance,
    alternate: options.Alternate = SparsityConfig.alternate,
    region: options.Region = None,
    block: options.Block = SparsityConfig.block,
    skip: options.Skip = None,
    only: options.Only = None,
    sparsity_config: options.SparsityFile = None,
) -> None:
    """Put masks on a trained model, adjust its batch norm on unlabelled images, and export it.

    Tells how far the masks take the outputs of those images from what they were.

    \b
    Examples:
      semisparse apply --model runs/dense --sparsity 0.1 --out masked.onnx
      semisparse apply --model nets:segmenter --weights lane.pt --region lane.png \\
          --calibrate imagefolder:frames --whole --image-size 360x640 --distill-steps 100
      semisparse apply --model torchvision/resnet18 --weights DEFAULT \\
          --sparsity 0.1 --calibrate imagefolder:photos --draws 8
    """
    from rich.console import Console

    from semisparse.export import export_header, export_onnx
    from semisparse.files import check_writable
    from semisparse.training import apply as masking
    from semisparse.training.self_distillation import Recipe

    if model is None:
        raise ConfigError("There is no model; give --model, and --weights for a model by name.")
    config = options.masks(ctx, sparsity_config)
    if config is None:
        raise ConfigError("There is nothing to apply at sparsity 0; give --sparsity, or --region.")
    for path in filter(None, (out, header)):
        check_writable(path)
    network, batch, source = trained.load(
        *(model, weights, num_classes, calibrate, data_root, image_size, whole),
        *(images, max_unreadable),
        option="--calibrate",
    )
    recipe = Recipe(distill_steps, distill_rate) if distill_steps else None
    teacher = copy.deepcopy(network) if recipe else network
    console = Console(stderr=True)
    with console.status(f"{len(batch)} images, {draws} draws of masks"):
        applied = masking.apply(network, batch, config, draws=draws)
    distilled = None
    if recipe:
        distilled = _distill(network, teacher, batch, recipe, config, source.whole, console)
    with console.status(f"exporting {out}"):
        report = export_onnx(network, batch[:1], out)
    if header is not None:
        export_header(network, header)
    if as_json:
        figures = {
            "path": str(report.path),
            "images": len(batch),
            **dataclasses.asdict(applied),
            "distilled": dataclasses.asdict(distilled) if distilled else None,
            "verification": report.errors,
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    _print(applied, distilled, len(batch), draws)
    errors = ", ".join(f"{kind} {error:.1e}" for kind, error in report.errors.items())
    Console().print(
        f"{report.path}: {report.size / 1e6:.1f} MB; norm-relative error against torch: {errors}",
        highlight=False,
        soft_wrap=True,
    )


def _distill(
    network: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    recipe: Recipe,
    config: SparsityConfig,
    whole: bool,
    console: Console,
) -> Distilled:
    from semisparse.training.progress import bars
    from semisparse.training.self_distillation import self_distill

    with bars(console) as bar:
        task = bar.add_task("self-distillation", total=recipe.steps, note="")
        return self_distill(
            network,
            teacher,
            images,
            recipe,
            lambda done, _total: bar.update(task, completed=done),
            config.region,
            # Whole images are those of cameras that stay where they are.
            in_place=whole,
        )


def _print(applied: Applied, distilled: Distilled | None, count: int, draws: int) -> None:
    from rich.table import Table

    console = tables_console()
    layers = Table("layer", "sparsity")
    for name, sparsity in applied.sparsities.items():
        layers.add_row(name, f"{sparsity:.3f}")
    console.print(layers)
    changes = Table("outputs of", "relative error", "divergence", "same class")
    states = {
        f"{count} images, masked": applied.before,
        f"{count} images, batch norm recalibrated": applied.after,
    }
    if distilled is not None:
        others = f"{distilled.held_out} of them, not learned from"
        states[f"{others}, before self-distillation"] = distilled.before
        states[f"{others}, after it"] = distilled.after
    for state, change in states.items():
        figures = (f"{value:.3g}" for value in (change.error, change.divergence))
        changes.add_row(state, *figures, f"{100 * change.agreement:.1f}%")
    console.print(changes)
    norms = f"{applied.recalibrated} batch norms have new statistics, of {count} images"
    if not applied.recalibrated:
        norms = "batch norm keeps its statistics, or there is none"
    low, high = min(applied.divergences), max(applied.divergences)
    console.print(
        f"{norms}; masks of seed {applied.seed}, divergence of {draws} draws: {low:.3g} to "
        f"{high:.3g}",
        highlight=False,
        soft_wrap=True,
    )
    if distilled is not None and not distilled.kept:
        console.print(
            "The steps took the outputs further away, so the weights are as they were; try a lower "
            "--distill-rate.",
            soft_wrap=True,
        )
