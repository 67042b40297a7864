"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semisparse.errors import ConfigError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; takes its place when the block succeeds.

    Raises:
        OSError: the folder does not exist or cannot be written, or `path` is a folder.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder, path.name)
        yield draft
        os.replace(draft, path)


def clear_drafts(folder: Path) -> None:
    """Remove what `writing` left in a folder where its process was killed."""
    for draft in folder.glob(".*.*.????????"):
        if draft.is_dir():
            shutil.rmtree(draft)


def check_writable(path: Path) -> None:
    """Tells before the work is done whether a file can be written after it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); give another path.") from error
