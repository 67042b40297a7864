"""Options that several commands have, and which of them the user gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from semisparse.config import SparsityConfig

MODEL = "Model and data"
MASKS = "Masks"
# Of options that take an image size.
SIZE = "<int or HxW>"

Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
OnnxFile = Annotated[Path, typer.Option(help="The file to write.")]
Header = Annotated[Path | None, typer.Option(help="Also write the masks as a C header here.")]
InputSeed = Annotated[int, typer.Option(min=0, help="Seed of the random input.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="torchvision/NAME or NAME, timm/NAME, semisparse/resnet8, or module.path:factory.",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="State dict, safetensors file, or DEFAULT (downloads); random if not given.",
        rich_help_panel=MODEL,
    ),
]
DataRoot = Annotated[str | None, typer.Option(help="Where the data set is.", rich_help_panel=MODEL)]
MaxUnreadable = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Fraction of the images that may be left out because they cannot be read.",
        rich_help_panel=MODEL,
    ),
]
# What `cli.trained.load` takes.
TrainedWeights = Annotated[
    str | None,
    typer.Option(
        help="State dict, safetensors file, or DEFAULT (downloads).", rich_help_panel=MODEL
    ),
]
TrainedClasses = Annotated[
    int, typer.Option(min=1, help="That the weights are for.", rich_help_panel=MODEL)
]
TrainedSize = Annotated[
    str | None,
    typer.Option(
        help="Height x width, as 180x320, or one number for a square; that of the run, or else of "
        "the data set.",
        metavar=SIZE,
        rich_help_panel=MODEL,
    ),
]
TrainedWhole = Annotated[
    bool | None,
    typer.Option(
        help="Resize the whole image to that size, whatever its shape, instead of cutting out the "
        "centre; as the run does, if not given.",
        rich_help_panel=MODEL,
    ),
]
Sparsity = Annotated[
    float,
    typer.Option(
        help="Fraction of positions to mask; 0 is a dense model.",
        rich_help_panel=MASKS,
    ),
]
Fill = Annotated[
    str,
    typer.Option(
        help="What masked positions hold: nearest, mean (of the two nearest; for layers with narrow "
        "outputs, as --only block-last) or bias.",
        rich_help_panel=MASKS,
    ),
]
Masks = Annotated[
    str,
    typer.Option(
        help="How masked positions are spread: blue-noise or random.", rich_help_panel=MASKS
    ),
]

Importance = Annotated[
    float,
    typer.Option(
        help="How much masks spare the positions that matter, measured on training images; 0 is "
        "not at all, 1 is usual. Wants trained weights.",
        rich_help_panel=MASKS,
    ),
]


Alternate = Annotated[
    bool,
    typer.Option(
        help="Residual blocks take turns at the positions they mask; for --only block-last.",
        rich_help_panel=MASKS,
    ),
]


Region = Annotated[
    # A path would not tell the picture ./none from the word.
    str | None,
    typer.Option(
        help="Picture of the part of the images that matters, in white, for a camera that stays "
        "where it is; nothing is computed outside of it, and --sparsity counts within. The word "
        "none takes back the region of a file.",
        metavar="<path or none>",
        rich_help_panel=MASKS,
    ),
]


def _block(value: int | str) -> int | str:
    # The default, a number, comes by here too.
    return int(value) if str(value).isdecimal() else value


Block = Annotated[
    # What the parser returns is a number or a word.
    Any,
    typer.Option(
        help="Side of the squares of positions that are masked as a whole, or auto; 4 is fastest "
        "where a model has many 3x3 convolutions.",
        parser=_block,
        metavar="<int or auto>",
        rich_help_panel=MASKS,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        help="Layers left dense: 1x1, depthwise, block-last, or a name pattern; repeatable.",
        rich_help_panel=MASKS,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Layers masked, by such rules; all if not given.", rich_help_panel=MASKS),
]
SparsityFile = Annotated[
    Path | None,
    typer.Option(
        help="SparsityConfig as JSON or YAML, for rules of single layers; options win over it.",
        rich_help_panel=MASKS,
    ),
]


def given(ctx: typer.Context) -> dict[str, Any]:
    """The options that stand on the command line, without those left at their defaults.

    Of a region its rows, instead of the picture's path or `none`.
    """
    found = {
        name: value
        for name, value in ctx.params.items()
        # By name: typer carries its own copy of click, whose enumeration is another type.
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    if "region" in found:
        from semisparse.training import config_file

        found["region"] = config_file.region(found["region"])
    return found


def masks(ctx: typer.Context, sparsity_config: Path | None) -> SparsityConfig | None:
    """What the command line says of masks, beside the file of `--sparsity-config`."""
    from semisparse.training import config_file, settings

    entries = config_file.read_masks(sparsity_config) if sparsity_config else {}
    return settings.masks({**entries, **given(ctx)})
