"""Inputs for a session: random ones, or from a NumPy file, checked against its signature."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from semisparse.errors import DataError

Feeds = dict[str, NDArray[Any]]

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def random_feeds(session: onnxruntime.InferenceSession, seed: int) -> Feeds:
    """Random values for every input of a session; a dynamic batch is 1.

    Floating-point values are standard normal, integers and booleans 0 or 1, so that they are valid
    as indices into anything.

    Raises:
        DataError: an input is of another type, or has a dynamic size that is not its batch.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for node in session.get_inputs():
        sizes = [1 if not isinstance(size, int) else size for size in node.shape[:1]]
        sizes += node.shape[1:]
        if node.type not in _DTYPES or not all(isinstance(size, int) for size in sizes):
            raise DataError(
                f"Input {node.name!r} is {node.type} of shape {node.shape}, for which no random "
                "values can be drawn; give the input in a file."
            )
        dtype = _DTYPES[node.type]
        normal = np.issubdtype(dtype, np.floating)
        drawn = generator.standard_normal(sizes) if normal else generator.integers(2, size=sizes)
        feeds[node.name] = drawn.astype(dtype)
    return feeds


def load_feeds(session: onnxruntime.InferenceSession, path: Path) -> Feeds:
    """The one array of a .npy file, or the arrays of an .npz by input name.

    Raises:
        DataError: the file is unreadable, or its arrays are not what the session wants.
    """
    nodes = session.get_inputs()
    try:
        loaded = np.load(path, allow_pickle=False)
        feeds = {nodes[0].name: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a NumPy array ({error}); give a .npy or .npz file."
        ) from error
    if set(feeds) != {node.name for node in nodes}:
        raise DataError(
            f"{path} holds {', '.join(feeds) or 'nothing'}, "
            f"the model's inputs are {', '.join(node.name for node in nodes)}; "
            "give an .npz with one array for each."
        )
    for node in nodes:
        array = feeds[node.name]
        fits = len(node.shape) == array.ndim and all(
            not isinstance(want, int) or want == have
            for want, have in zip(node.shape, array.shape, strict=True)
        )
        if not fits or (node.type in _DTYPES and array.dtype != _DTYPES[node.type]):
            raise DataError(
                f"{path} holds {array.dtype} of shape {list(array.shape)} for input {node.name!r}, "
                f"which is {node.type} of shape {node.shape}; convert it."
            )
    return feeds
