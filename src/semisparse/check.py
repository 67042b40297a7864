"""An exported file against itself: the library's operators against their portable bodies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisparse.errors import FileFormatError
from semisparse.feeds import Feeds, random_feeds
from semisparse.runtime import ORT_ERRORS, InferenceSession

FORMAT = "1"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        path: the file.
        version: of the semisparse that wrote it.
        sparsity: of the masked layers by name.
        masks_sha256: the digest that identifies the masks.
        errors: by output name, norm-relative difference of library and portable body.
        tolerance: what `ok` compares with.
    """

    path: Path
    version: str
    sparsity: Mapping[str, float]
    masks_sha256: str
    errors: Mapping[str, float]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every output agrees within the tolerance."""
        return all(error <= self.tolerance for error in self.errors.values())


def check(
    path: str | os.PathLike[str], *, seed: int = 0, tolerance: float = TOLERANCE
) -> CheckReport:
    """Run a file with and without the library on random inputs, at a batch of 1 where it is free.

    Args:
        path: a file that `export_onnx` wrote.
        seed: of the inputs.
        tolerance: norm-relative, `||library - portable|| / ||portable||`.

    Raises:
        DataError: no random values can be drawn for an input.
        FileFormatError: the file is missing, corrupt, truncated, or not one of ours.
        LibraryError: the library is missing or cannot be loaded.
    """
    path = Path(path)
    try:
        return _check(path, seed, tolerance)
    # ONNX Runtime hands out names and metadata of a damaged file as they are.
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{path} has names or metadata that are not text ({error}); export the model again."
        ) from error


def relative_error(computed: NDArray[Any], expected: NDArray[Any]) -> float:
    """`||computed - expected|| / ||expected||` in float64; infinite where they cannot be compared.

    Where `expected` is all zeros, the norm of `computed`.
    """
    if computed.shape != expected.shape:
        return float("inf")
    expected = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = float(np.linalg.norm((computed - expected).ravel()))
    norm = float(np.linalg.norm(expected.ravel()))
    error = difference / norm if norm else difference
    return error if np.isfinite(error) else float("inf")


def _check(path: Path, seed: int, tolerance: float) -> CheckReport:
    portable = InferenceSession(path, library=False)
    entries = portable.get_modelmeta().custom_metadata_map
    if entries.get("semisparse.format") != FORMAT:
        raise FileFormatError(
            f"{path} has semisparse.format {entries.get('semisparse.format')!r} in its metadata "
            f"and this version reads {FORMAT!r}; export the model with this version of semisparse."
        )
    sparsity = _sparsity(path, entries)
    feeds = random_feeds(portable, seed)
    expected = _run(path, portable, feeds)
    computed = _run(path, InferenceSession(path), feeds)
    errors = {
        output.name: relative_error(ours, theirs)
        for output, ours, theirs in zip(portable.get_outputs(), computed, expected, strict=True)
    }
    return CheckReport(
        path=path,
        version=entries.get("semisparse.version", ""),
        sparsity=sparsity,
        masks_sha256=entries.get("semisparse.masks_sha256", ""),
        errors=errors,
        tolerance=tolerance,
    )


def _sparsity(path: Path, entries: Mapping[str, str]) -> dict[str, float]:
    text = entries.get("semisparse.sparsity", "")
    try:
        return {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise FileFormatError(
            f"{path} has semisparse.sparsity {text[:80]!r} in its metadata, which is not JSON of "
            "layers and their sparsities; export the model again."
        ) from error


def _run(path: Path, session: InferenceSession, feeds: Feeds) -> list[NDArray[Any]]:
    try:
        return [np.asarray(output) for output in session.run(None, feeds)]
    except ORT_ERRORS as error:
        raise FileFormatError(
            f"{path} loads but does not run ({error}); export the model again."
        ) from error
