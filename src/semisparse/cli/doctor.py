"""`semisparse doctor`: is this installation well on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from semisparse.cli.console import tables_console


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine the installation: versions, CPU, instruction sets, kernels, the operator library.

    The exit code is 0 when all is well, else 1. SEMISPARSE_ISA forces an instruction set.

    \b
    Examples:
      semisparse doctor
      SEMISPARSE_ISA=avx2 semisparse doctor --json
    """
    from rich.markup import escape
    from rich.table import Table

    from semisparse.doctor import diagnose

    found = diagnose()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        raise typer.Exit(0 if found.healthy else 1)

    def listed(names: dict[str, bool]) -> str:
        return ", ".join(
            name if usable else f"{name} [dim](not on this CPU)[/]"
            for name, usable in names.items()
        )

    table = Table(show_header=False)
    for name, version in found.versions.items():
        table.add_row(name, version)
    table.add_row("cpu", escape(found.cpu))
    table.add_row("library path", escape(found.library or "[none]"))
    table.add_row("interface version", str(found.abi))
    table.add_row("instruction sets", listed(found.isas))
    table.add_row("in force", found.isa or "none")
    table.add_row("kernels", listed(found.kernels))
    table.add_row("runs in ONNX Runtime", "yes" if found.accepted else "[red]no[/]")
    for extra, packages in found.extras.items():
        missing = [name for name, version in packages.items() if version is None]
        table.add_row(
            f"extra {extra}", f"[yellow]missing: {', '.join(missing)}[/]" if missing else "complete"
        )
    console = tables_console()
    console.print(table)
    for problem in found.problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if not found.healthy:
        raise typer.Exit(1)
    console.print("All is well.", style="green")
