"""The `semisparse` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from semisparse.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(
            f"semisparse: the command line needs {package}, which is not installed; "
            "run: pip install 'semisparse[cli]'"
        )
    app()


if __name__ == "__main__":
    main()
