"""`semisparse apply`: masks on a trained model without training, exported as an .onnx file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semisparse.cli import options
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from semisparse.training.apply import Applied
    from semisparse.training.data import Normalisation


def apply(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("model.onnx"),
    header: Annotated[
        Path | None, typer.Option(help="Also write the masks as a C header here.")
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Random masks to try; the ones that change the outputs least stay.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first of them.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="torchvision/NAME, timm/NAME, module.path:factory, or the folder of a finished "
            "run without masks.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="State dict, safetensors file, or DEFAULT (downloads).",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    num_classes: Annotated[
        int,
        typer.Option(
            min=1,
            help="That the weights are for.",
            rich_help_panel=options.MODEL,
        ),
    ] = 1000,
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
    data_root: Annotated[
        str | None, typer.Option(help="Where the data set is.", rich_help_panel=options.MODEL)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Height and width; that of the run, or else of the data set.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    sparsity: options.Sparsity = 0.0,
    fill: options.Fill = SparsityConfig.fill,
    block: options.Block = SparsityConfig.block,
    skip: options.Skip = None,
    sparsity_config: options.SparsityFile = None,
) -> None:
    """Put masks on a trained model, adjust its batch norm on unlabelled images, and export it.

    Tells how far the masks take the outputs of those images from what they were.

    \b
    Examples:
      semisparse apply --model runs/dense --sparsity 0.1 --out masked.onnx
      semisparse apply --model torchvision/resnet18 --weights DEFAULT \\
          --sparsity 0.1 --calibrate imagefolder:photos --draws 8
    """
    from rich.console import Console

    from semisparse.export import export_header, export_onnx
    from semisparse.files import check_writable
    from semisparse.training import apply as masking

    if model is None:
        raise ConfigError("There is no model; give --model, and --weights for a model by name.")
    masks = options.masks(ctx, sparsity_config)
    if masks is None:
        raise ConfigError("There is nothing to apply at sparsity 0; give --sparsity.")
    for path in filter(None, (out, header)):
        check_writable(path)
    if Path(model).is_dir():
        network, batch = _of_run(Path(model), weights, calibrate, images, data_root, image_size)
    else:
        network, batch = _by_name(
            model, weights, num_classes, calibrate, images, data_root, image_size
        )
    with Console(stderr=True).status(f"{len(batch)} images, {draws} draws of masks"):
        applied = masking.apply(network, batch, masks, draws=draws)
        report = export_onnx(network, batch[:1], out)
    if header is not None:
        export_header(network, header)
    if as_json:
        figures = {
            "path": str(report.path),
            "images": len(batch),
            **dataclasses.asdict(applied),
            "verification": report.errors,
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    _print(applied, len(batch), draws)
    errors = ", ".join(f"{kind} {error:.1e}" for kind, error in report.errors.items())
    Console().print(
        f"{report.path}: {report.size / 1e6:.1f} MB; norm-relative error against torch: {errors}",
        highlight=False,
        soft_wrap=True,
    )


def _of_run(
    folder: Path,
    weights: str | None,
    calibrate: str | None,
    count: int,
    data_root: str | None,
    image_size: int | None,
) -> tuple[nn.Module, Tensor]:
    """The network of a run, and images, by default of the data that it was trained on."""
    from semisparse.training import saved, settings

    run = settings.read(folder)
    if weights is not None:
        raise ConfigError(
            f"The run {folder} has weights of its own, but --weights is {weights}; give one of "
            "them."
        )
    if run.sparsity is not None:
        raise ConfigError(
            f"The run {folder} has masks already; give a run without, or export this one with "
            f"semisparse export --run {folder}."
        )
    network, _ = saved.load_dense(folder)
    batch = _images(
        calibrate or run.data,
        count,
        data_root or (run.data_root if calibrate is None else None),
        image_size or run.image_size,
        saved.normalisation(folder),
    )
    return network, batch


def _by_name(
    name: str,
    weights: str | None,
    num_classes: int,
    calibrate: str | None,
    count: int,
    data_root: str | None,
    image_size: int | None,
) -> tuple[nn.Module, Tensor]:
    """A model by name with its weights, and images as they want them."""
    from semisparse.training import models

    # A factory may give trained weights.
    if weights is None and ":" not in name:
        raise ConfigError(
            f"The weights of {name} would be random, so masks change nothing of worth; give "
            "--weights, DEFAULT or a file."
        )
    if calibrate is None:
        raise ConfigError("There are no images to calibrate on; give --calibrate, a data set.")
    normalisation = models.normalisation(name, weights)
    batch = _images(calibrate, count, data_root, image_size, normalisation)
    return models.create(name, num_classes, weights, batch.shape[1], exact=True), batch


def _images(
    name: str,
    count: int,
    data_root: str | None,
    image_size: int | None,
    normalisation: Normalisation | None,
) -> Tensor:
    from semisparse.training.data import calibration_images

    return calibration_images(name, count, data_root, image_size, normalisation=normalisation)


def _print(applied: Applied, count: int, draws: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    layers = Table("layer", "sparsity")
    for name, sparsity in applied.sparsities.items():
        layers.add_row(name, f"{sparsity:.3f}")
    console.print(layers)
    changes = Table("outputs of the images", "relative error", "divergence", "same class")
    states = {"masked": applied.before, "batch norm recalibrated": applied.after}
    for state, change in states.items():
        figures = (f"{value:.3g}" for value in (change.error, change.divergence))
        changes.add_row(state, *figures, f"{100 * change.agreement:.1f}%")
    console.print(changes)
    norms = f"{applied.recalibrated} batch norms have new statistics, of {count} images"
    if not applied.recalibrated:
        norms = "batch norm keeps its statistics, or there is none"
    low, high = min(applied.divergences), max(applied.divergences)
    console.print(
        f"{norms}; masks of seed {applied.seed}, divergence of {draws} draws: {low:.3g} to {high:.3g}",
        highlight=False,
    )
