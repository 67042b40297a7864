"""`semisparse train`: a classifier trained with masks, tested and exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semisparse.cli import options
from semisparse.cli.console import tables_console
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from semisparse.training.settings import TrainSettings

_RECIPE = "Recipe"
_DISTILLATION = "Distillation"
_PRUNING = "Channel pruning"
_DEVICES = "Devices"


def train(
    ctx: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must not exist.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file with these options; the command line wins over it."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, image order and masks.")] = 0,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints within an epoch; 0 is at its end only.")
    ] = 0,
    as_json: options.Json = False,
    model: options.Model = None,
    weights: options.Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="imagenet, flowers102, food101, cifar10, cifar100, fashion-mnist, digits, or "
            "imagefolder:PATH.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    download: Annotated[
        bool,
        typer.Option(help="Fetch the data set if absent.", rich_help_panel=options.MODEL),
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Height x width, as 180x320, or one number for a square; that of the run that "
            "--model names, or else 224, for sets of small images 32.",
            metavar=options.SIZE,
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            help="Resize the whole image to that size, whatever its shape, instead of cropping; as "
            "the run does that --model names, if not given.",
            show_default=False,
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that load images.", rich_help_panel=options.MODEL)
    ] = 0,
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
    selection: Annotated[
        str,
        typer.Option(
            help="Which draw of masks is kept: best_loss, last or first.",
            rich_help_panel=options.MASKS,
        ),
    ] = SparsityConfig.selection,
    sparsity_initial: Annotated[
        float,
        typer.Option(help="Sparsity before it begins to rise.", rich_help_panel=options.MASKS),
    ] = SparsityConfig.initial,
    sparsity_begin: Annotated[
        float,
        typer.Option(
            help="Fraction of the steps after which it rises.", rich_help_panel=options.MASKS
        ),
    ] = SparsityConfig.begin,
    sparsity_end: Annotated[
        float,
        typer.Option(
            help="Fraction of the steps after which masks are frozen; 0 is from the first on.",
            rich_help_panel=options.MASKS,
        ),
    ] = SparsityConfig.end,
    sparsity_frequency: Annotated[
        int, typer.Option(help="Steps between two draws of masks.", rich_help_panel=options.MASKS)
    ] = SparsityConfig.frequency,
    sparsity_config: options.SparsityFile = None,
    epochs: Annotated[
        int, typer.Option(help="Passes over the training images.", rich_help_panel=_RECIPE)
    ] = 20,
    batch_size: Annotated[
        int, typer.Option(help="Images a step and device.", rich_help_panel=_RECIPE)
    ] = 64,
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam, adamw or rmsprop.", rich_help_panel=_RECIPE)
    ] = "sgd",
    learning_rate: Annotated[
        float,
        typer.Option(
            help="At the start; falls to 1% of it. Adam and AdamW want about 0.001.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.1,
    schedule: Annotated[
        str, typer.Option(help="How it falls: cosine or linear.", rich_help_panel=_RECIPE)
    ] = "cosine",
    momentum: Annotated[
        float, typer.Option(help="Of SGD and RMSprop.", rich_help_panel=_RECIPE)
    ] = 0.9,
    weight_decay: Annotated[
        float, typer.Option(help="On weights only.", rich_help_panel=_RECIPE)
    ] = 5e-4,
    label_smoothing: Annotated[
        float, typer.Option(help="In [0, 1).", rich_help_panel=_RECIPE)
    ] = 0.0,
    clip_gradient: Annotated[
        float,
        typer.Option(help="Largest norm of the gradient; 0 is no limit.", rich_help_panel=_RECIPE),
    ] = 10.0,
    ema: Annotated[
        float,
        typer.Option(
            help="Decay of averaged weights, which are then the ones tested and exported; 0 is "
            "none.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16 (mixed).", rich_help_panel=_RECIPE)
    ] = "fp32",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A model as for --model, or the folder of a finished run.",
            rich_help_panel=_DISTILLATION,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None, typer.Option(help="As --weights.", rich_help_panel=_DISTILLATION)
    ] = None,
    distill_alpha: Annotated[
        float,
        typer.Option(
            help="Share of the teacher in the loss; 1 leaves the labels out.",
            rich_help_panel=_DISTILLATION,
        ),
    ] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="That softens both logits.", rich_help_panel=_DISTILLATION)
    ] = 4.0,
    prune_channels: Annotated[
        float,
        typer.Option(
            help="Share of the channels to remove before masks are trained.",
            rich_help_panel=_PRUNING,
        ),
    ] = 0.0,
    prune_importance: Annotated[
        str, typer.Option(help="What ranks them: magnitude or taylor.", rich_help_panel=_PRUNING)
    ] = "magnitude",
    prune_epochs: Annotated[
        int, typer.Option(help="Epochs before the masks.", rich_help_panel=_PRUNING)
    ] = 0,
    accelerator: Annotated[
        str, typer.Option(help="auto, cpu or gpu.", rich_help_panel=_DEVICES)
    ] = "auto",
    devices: Annotated[int, typer.Option(help="Of each machine.", rich_help_panel=_DEVICES)] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.", rich_help_panel=_DEVICES)] = 1,
    strategy: Annotated[
        str, typer.Option(help="How several train together: auto or ddp.", rich_help_panel=_DEVICES)
    ] = "auto",
) -> None:
    """Train a classifier with masks, test it, and export model.onnx and masks.h.

    \b
    Examples:
      semisparse train --model semisparse/resnet8 --data digits --sparsity 0.2 --out runs/digits
      semisparse train --model torchvision/resnet18 --data imagefolder:flowers --sparsity 0.3 \\
          --skip 1x1 --epochs 60 --out runs/flowers
      semisparse train --model torchvision/mobilenet_v2 --weights DEFAULT --data imagefolder:lane \\
          --whole --image-size 180x320 --region lane.png --out runs/lane
      semisparse train --config flowers.yaml --learning-rate 0.01 --out runs/slower
      semisparse train --resume runs/flowers
    """
    from rich.table import Table

    from semisparse.training import run

    folder = out if resume is None else resume
    if folder is None:
        raise ConfigError("A new run needs --out, a folder; to go on with one, give --resume.")
    if out not in (None, folder):
        raise ConfigError(f"--resume {resume} and --out {out} are two folders; give one of them.")
    chosen = _settings(ctx, config, sparsity_config, resume)
    result = run.train(chosen, folder, resume=resume is not None)
    if not run.is_first_process():
        return
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **dataclasses.asdict(result)}, indent=2))
        return
    table = Table("layer", "sparsity")
    for name, value in result.sparsities.items():
        table.add_row(name, f"{value:.3f}")
    console = tables_console()
    if result.sparsities:
        console.print(table)
    console.print(
        f"test accuracy {100 * result.test_accuracy:.2f}%, run folder {folder}", soft_wrap=True
    )


def _settings(
    ctx: typer.Context, config: Path | None, sparsity_config: Path | None, resume: Path | None
) -> TrainSettings:
    """Those of a resumed run, overridden by the file's, overridden by the command line's.

    A new run that begins with another's network prepares images as that one did, where neither
    says how.
    """
    from semisparse.training import config_file, saved, settings

    entries: dict[str, Any] = {}
    if resume is not None:
        entries |= settings.read(resume).to_flat()
    if config is not None:
        entries |= config_file.read(config)
    if sparsity_config is not None:
        entries |= config_file.read_masks(sparsity_config)
    known = settings.names()
    entries |= {name: value for name, value in options.given(ctx).items() if name in known}
    model = entries.get("model")
    if resume is None and isinstance(model, str) and Path(model).is_dir():
        start = saved.FinishedRun(Path(model))
        prepared = {"image_size": start.image_size.plain, "whole": start.settings.whole}
        entries = {**prepared, **entries}
    return settings.TrainSettings.from_flat(entries)
