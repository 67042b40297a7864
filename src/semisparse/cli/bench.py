"""`semisparse bench`: exported models against other engines, interleaved in one run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from semisparse.cli import options
from semisparse.cli.console import print_table, still_bar, tables_console
from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from semisparse.bench.harness import Results

_QUICK: dict[str, Any] = {
    "sparsities": (0.0, 0.3),
    "threads": (1,),
    "peers": ("onnxruntime",),
    "rounds": 5,
}


class ListOptions(TyperCommand):
    """A command whose repeatable options also take several values at once: `--threads 1 2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Writes `--option a b` as `--option a --option b`, which is what click knows."""
        lists = {name for param in self.params if param.multiple for name in param.opts}
        spread: list[str] = []
        option = None
        for arg in args:
            if arg.startswith("-") and arg != "-":
                option = arg if arg in lists else None
                if option is None:
                    spread.append(arg)
            else:
                spread += [arg] if option is None else [option, arg]
        return super().parse_args(ctx, spread)


def bench(
    models: Annotated[
        list[str],
        typer.Argument(help="torchvision/NAME or NAME, timm/NAME, or an exported .onnx file."),
    ],
    sparsity: Annotated[
        list[str] | None,
        typer.Option(help="Sparsities; 0 is the dense model. (default: 0 0.1 0.2 0.3 0.5)"),
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(help="Fills: bias, nearest, mean. (default: bias nearest)"),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            help="Sides of the squares of positions that are masked as a whole; auto gives every "
            "layer the one that its kernel likes best. (default: 1)"
        ),
    ] = None,
    chains: Annotated[
        list[str] | None,
        typer.Option(
            help="Convolutions of inverted residuals: fused, or separate to see what fusing gains. "
            "(default: fused)"
        ),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Layers left dense: 1x1, depthwise, or a pattern.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Layers masked: block-last, linear, or a pattern; all if not given."),
    ] = None,
    alternate: Annotated[
        bool,
        typer.Option("--alternate", help="Residual blocks take turns at the positions they mask."),
    ] = False,
    region: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the part of the images that matters, in white: nothing is computed "
            "outside of it, and the sparsities count within. Of models by name."
        ),
    ] = None,
    threads: Annotated[
        list[str] | None, typer.Option(help="Numbers of threads, one run each. (default: 1 2)")
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            help="Other engines: onnxruntime, openvino, xnnpack, ncnn, torch-eager, "
            "torch-compile. (default: the first four)"
        ),
    ] = None,
    image_size: Annotated[
        str,
        typer.Option(
            help="Of the input: height x width, as 180x320, or one number for a square.",
            metavar=options.SIZE,
        ),
    ] = "224",
    rounds: Annotated[
        int | None, typer.Option(help="Samples of each candidate in a run. (default: 20)")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Profile layer by layer.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure sessions' memory and creation time.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Only sparsity 0 and 0.3, 1 thread, onnxruntime and 5 rounds, where not given.",
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps exported models. (default: ~/.cache/semisparse/bench)"
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write figures and all samples; - prints them.")
    ] = None,
    markdown_path: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables.")
    ] = None,
) -> None:
    """Time models against other engines: same weights, one interleaved run for each thread count.

    Names the models first: an option's list reaches to the next option. Lists may be separated by
    spaces or commas, or the option repeated.

    \b
    Examples:
      semisparse bench resnet18 --quick
      semisparse bench resnet18 mobilenet_v2 --sparsity 0 0.1 0.2 0.3 0.5 --threads 1 2 \\
          --peers onnxruntime openvino xnnpack ncnn --fill bias nearest \\
          --json out.json --markdown out.md
      semisparse bench resnet18 --sparsity 0.3 --fill nearest --block 1 4 auto
      semisparse bench convnext_tiny --sparsity 0.5 0.75 --only block-last --alternate --fill mean
      semisparse bench mobilenet_v2 --sparsity 0 0.3 --region road.png --image-size 180x320
      semisparse bench model.onnx --peers onnxruntime,openvino --layers
    """
    from rich.console import Console

    from semisparse.bench import harness, tables
    from semisparse.files import check_writable, writing

    given: dict[str, Any] = {
        "sparsities": _numbers("sparsity", sparsity, float),
        "fills": _items(fill),
        "blocks": _numbers("block", block, _block),
        "chains": _items(chains),
        "skip": _items(skip),
        "only": _items(only),
        "region": _region(region),
        "threads": _numbers("threads", threads, int),
        "peers": _items(peers),
        "rounds": rounds,
    }
    given = {name: value for name, value in given.items() if value is not None}
    settings = harness.Settings(
        models=tuple(models),
        image_size=image_size,
        alternate=alternate,
        layers=layers,
        memory=memory,
        **{**(_QUICK if quick else {}), **given},
    )
    to_stdout = json_path == Path("-")
    files = [path for path in (json_path, markdown_path) if path and path != Path("-")]
    cache = cache or _cache()
    for path in (*files, cache / "model"):
        check_writable(path)
    # Progress, and the tables where JSON takes the standard output.
    console = Console(stderr=True)
    printed = tables_console(stderr=to_stdout)

    def finished(results: Results) -> None:
        for table in tables.model_tables(results.models[-1]):
            print_table(printed, table)
        contents = {json_path: _dumps(results), markdown_path: tables.markdown(results)}
        for path in files:
            with writing(path) as draft:
                draft.write_text(contents[path], encoding="utf-8")

    with still_bar(console) as progress:
        results = harness.run(settings, cache, progress, finished)
    for line in (*tables.machine_lines(results), *tables.mask_lines(settings)):
        printed.print(line, highlight=False)
    if to_stdout:
        typer.echo(_dumps(results))


def _region(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    # With torch, which timing exported files does without.
    from semisparse.training.config_file import read_region

    return read_region(path)


def _dumps(results: Results) -> str:
    return json.dumps(results.to_dict(), indent=1) + "\n"


def _items(values: Sequence[str] | None) -> tuple[str, ...] | None:
    if not values:
        return None
    return tuple(item for value in values for item in value.split(",") if item)


def _block(item: str) -> int | str:
    return item if item == "auto" else int(item)


def _numbers(
    what: str, values: Sequence[str] | None, kind: Callable[[str], Any]
) -> tuple[Any, ...] | None:
    try:
        return None if not values else tuple(kind(item) for item in _items(values) or ())
    except ValueError as error:
        raise ConfigError(
            f"--{what} is {' '.join(values or ())}; give numbers, and the models before them."
        ) from error


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "semisparse", "bench")
