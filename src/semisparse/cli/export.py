"""`semisparse export`: the model of a run, or one by name with random masks, as an .onnx file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semisparse.cli import options
from semisparse.cli.console import tables_console
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.image_size import ImageSize

if TYPE_CHECKING:
    from torch import Tensor, nn


def export(
    ctx: typer.Context,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a finished `semisparse train`.")
    ] = None,
    out: options.OnnxFile = Path("model.onnx"),
    header: options.Header = None,
    as_json: options.Json = False,
    model: options.Model = None,
    weights: options.Weights = None,
    num_classes: Annotated[
        int, typer.Option(min=1, help="Of the model.", rich_help_panel=options.MODEL)
    ] = 1000,
    image_size: Annotated[
        str,
        typer.Option(
            help="Height x width, as 180x320, or one number for a square.",
            metavar=options.SIZE,
            rich_help_panel=options.MODEL,
        ),
    ] = "224",
    seed: Annotated[
        int, typer.Option(min=0, help="Of weights and masks.", rich_help_panel=options.MODEL)
    ] = 0,
    sparsity: options.Sparsity = 0.0,
    fill: options.Fill = SparsityConfig.fill,
    masks: options.Masks = SparsityConfig.masks,
    block: options.Block = SparsityConfig.block,
    skip: options.Skip = None,
    only: options.Only = None,
    sparsity_config: options.SparsityFile = None,
) -> None:
    """Export the model of a training run, or a model by name with randomly drawn masks.

    The second is for timing: masks that no training has seen cost accuracy. Options of model and
    masks belong to it alone.

    \b
    Examples:
      semisparse export --run runs/digits --out digits.onnx --header digits.h
      semisparse export --model torchvision/resnet18 --sparsity 0.2 --out resnet18.onnx
    """
    from rich.table import Column, Table

    from semisparse.export import export_header, export_onnx

    if (run is None) == (model is None):
        raise ConfigError("Give either --run, a training run, or --model, a name.")
    if run is not None:
        from semisparse.training.saved import load_run

        network, example, _ = load_run(run)
    else:
        assert model is not None
        config = options.masks(ctx, sparsity_config)
        size = ImageSize.of(image_size)
        network, example = _by_name(model, num_classes, weights, size, config, seed)
    report = export_onnx(network, example, out)
    if header is not None:
        export_header(network, header)

    if as_json:
        figures = {**dataclasses.asdict(report), "path": str(report.path)}
        typer.echo(json.dumps(figures, indent=2))
        return
    table = Table("layer", Column("operator", overflow="fold"), "output plane", "sparsity")
    for layer in report.layers:
        table.add_row(
            layer.name, layer.op, f"{layer.height}x{layer.width}", f"{layer.sparsity:.3f}"
        )
    console = tables_console()
    console.print(table)
    errors = ", ".join(f"{kind} {error:.1e}" for kind, error in report.errors.items())
    console.print(
        f"{report.path}: {report.size / 1e6:.1f} MB; norm-relative error against torch: {errors}",
        highlight=False,
        soft_wrap=True,
    )


def _by_name(
    name: str,
    num_classes: int,
    weights: str | None,
    size: ImageSize,
    masks: SparsityConfig | None,
    seed: int,
) -> tuple[nn.Module, Tensor]:
    """A model by name in evaluation mode, with masks as the configuration draws them."""
    import torch

    from semisparse.sparsifier import Sparsifier
    from semisparse.training.models import create

    torch.manual_seed(seed)
    model = create(name, num_classes, weights).eval()
    example = torch.randn(1, 3, *size)
    if masks is not None:
        Sparsifier(model, example, masks, total_steps=1).freeze()
    return model, example
