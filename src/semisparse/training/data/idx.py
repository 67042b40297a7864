"""The file format of MNIST and its kin, gzipped or not.

torchvision reads it only unpacked and in a folder layout of its own, which is not Debian's.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semisparse.errors import DataError


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An unsigned-byte IDX file: two zeros, type 8, the rank, big-endian sizes, the data.

    Reads `name` in `folder`, or `name` with `.gz`. Raises `DataError` when it is no such file, or
    not a whole one.
    """
    packed = folder / f"{name}.gz"
    path = packed if packed.is_file() else folder / name
    try:
        raw = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it and fetch the data again."
        ) from error
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(raw[4 : 4 + 4 * rank], ">u4"))
    values: NDArray[np.uint8] = np.frombuffer(raw[4 + 4 * rank :], np.uint8).copy()
    if rank == 0 or len(values) != math.prod(shape):
        raise DataError(
            f"{path} is not a whole IDX file ({len(raw)} bytes, sizes {shape}); remove it "
            "and fetch the data again."
        )
    images: NDArray[np.uint8] = values.reshape(shape)
    return images
