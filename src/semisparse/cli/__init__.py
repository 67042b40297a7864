"""The command line: one file per command, whose heavy imports wait until it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import semisparse
from semisparse.cli.apply import apply
from semisparse.cli.bench import ListOptions, bench
from semisparse.cli.check import check
from semisparse.cli.compare import compare
from semisparse.cli.demo import demo
from semisparse.cli.doctor import doctor
from semisparse.cli.export import export
from semisparse.cli.run import run
from semisparse.cli.train import train
from semisparse.cli.tune import tune
from semisparse.errors import SemisparseError


class _Commands(TyperGroup):
    """Commands in the order of registration; an expected error is one line and exit code 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SemisparseError as error:
            if ctx.params["debug"]:
                raise
            _print_error(str(error))
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if ctx.params["debug"] or package == "semisparse":
                raise
            _print_error(
                f"this command needs {package}, which is not installed; "
                "run: pip install 'semisparse[train]'"
            )
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    # Tracebacks only reach the user through --debug or a defect; both want Python's own.
    pretty_exceptions_enable=False,
)


def _print_error(message: str) -> None:
    Console(stderr=True).print(
        f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(semisparse.__version__)
        raise typer.Exit


@app.callback()
def semisparse_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Convolutional networks that skip positions of their feature maps, and run faster for it.

    \b
    Examples:
      semisparse demo
      semisparse export --model torchvision/resnet18 --sparsity 0.2 --out model.onnx
      semisparse run model.onnx --threads 1
    """


app.command()(demo)
app.command()(train)
app.command()(apply)
app.command()(tune)
app.command()(export)
app.command()(run)
app.command()(compare)
app.command(cls=ListOptions)(bench)
app.command()(check)
app.command()(doctor)
