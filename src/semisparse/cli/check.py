"""`semisparse check`: an exported file against its own portable body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from semisparse.cli import options
from semisparse.cli.console import tables_console


def check(
    model: Annotated[Path, typer.Argument(help="A file that semisparse exported.")],
    seed: options.InputSeed = 0,
    as_json: options.Json = False,
) -> None:
    """Compare an exported file's fast operators with its portable ones, without torch.

    The exit code is 0 when they agree, else 1.

    \b
    Examples:
      semisparse check model.onnx
      semisparse check model.onnx --seed 7 --json
    """
    import onnxruntime
    from rich.table import Table

    from semisparse.check import check as check_file

    onnxruntime.set_default_logger_severity(4)  # what it logs as an error, it raises as well
    report = check_file(model, seed=seed)
    if as_json:
        found = {
            "path": str(report.path),
            "ok": report.ok,
            "version": report.version,
            "sparsity": dict(report.sparsity),
            "masks_sha256": report.masks_sha256,
            "errors": dict(report.errors),
            "tolerance": report.tolerance,
        }
        typer.echo(json.dumps(found, indent=2))
    else:
        table = Table("output", "norm-relative error")
        for name, error in report.errors.items():
            table.add_row(name, f"{error:.1e}", style="" if error <= report.tolerance else "red")
        console = tables_console()
        console.print(table)
        console.print(
            f"{len(report.sparsity)} masked layers, written by semisparse {report.version}"
        )
        console.print(
            f"{'agrees' if report.ok else 'does not agree'} to {report.tolerance:.0e}",
            style="green" if report.ok else "red",
        )
    if not report.ok:
        raise typer.Exit(1)
