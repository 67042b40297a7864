"""Running an exported file in ONNX Runtime with the operator library registered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

import semisparse
from semisparse.errors import ConfigError, FileFormatError, LibraryError

LIBRARY_NAME = "libsemisparse.so"

# ONNX Runtime refuses a second registration on the same options, and cannot say that there was one.
_registered: WeakSet[onnxruntime.SessionOptions] = WeakSet()

# What ONNX Runtime raises: one class per status code, with no common base but Exception.
ORT_ERRORS = tuple(
    getattr(ort_errors, name)
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)


def library_path() -> Path:
    """Path of the operator library, for `register_custom_ops_library` in any language.

    `$SEMISPARSE_LIBRARY` if it is set, else the library installed with the package.

    Raises:
        LibraryError: there is no file at that place.
    """
    if forced := os.environ.get("SEMISPARSE_LIBRARY"):
        if not Path(forced).is_file():
            raise LibraryError(
                f"SEMISPARSE_LIBRARY is {forced!r}, which is not a file; "
                "unset it or set it to the path of the library."
            )
        return Path(forced).resolve()
    # An editable install spreads one package over the sources and the place of built files.
    folders = [Path(folder) for folder in semisparse.__path__]
    for folder in folders:
        if (folder / LIBRARY_NAME).is_file():
            return folder / LIBRARY_NAME
    raise LibraryError(
        f"{LIBRARY_NAME} is not in {' or '.join(map(str, folders))}; "
        "reinstall semisparse, or set SEMISPARSE_LIBRARY to the path of the library."
    )


# onnxruntime has no annotations.
class InferenceSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """An `onnxruntime.InferenceSession` with the operator library registered.

    Inputs and outputs have the layout they have in torch (NCHW). Any other ONNX model runs too.

    Args:
        path_or_bytes: the model.
        threads: size of the session's thread pool; None leaves `sess_options` as it is.
        sess_options: options to start from; `threads` is set and the library registered on them,
            so they must not have it yet other than from here.
        providers: execution providers; the library's operators run on the CPU.
        library: False leaves the library out, so that the operators' portable bodies run.

    Raises:
        ConfigError: `threads` is less than 1.
        FileFormatError: the model is missing, corrupt, or refused by ONNX Runtime or an operator.
        LibraryError: the library is missing, or ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        *,
        threads: int | None = None,
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] = ("CPUExecutionProvider",),
        library: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads is {threads}; give 1 or more, or None for the default.")
            options.intra_op_num_threads = threads
        if library:
            register(options)
        if isinstance(path_or_bytes, bytes):
            name = f"a model of {len(path_or_bytes)} bytes"
        else:
            name = os.fspath(path_or_bytes)
            if not Path(name).is_file():
                raise FileFormatError(f"{name} is not a file; give the path of an .onnx model.")
        try:
            # The fallback would try the same providers once more and print about it.
            super().__init__(
                path_or_bytes, options, providers=list(providers), enable_fallback=False
            )
        # A damaged file may hold names that are not text.
        except (*ORT_ERRORS, UnicodeDecodeError) as error:
            raise FileFormatError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {name} ({error}); "
                "if the file is damaged or is not an ONNX model, export it again."
            ) from error


def register(options: onnxruntime.SessionOptions) -> None:
    """Register the operator library on session options, once.

    Raises:
        LibraryError: the library is missing, or ONNX Runtime cannot load it.
    """
    if options in _registered:
        return
    path = library_path()
    try:
        options.register_custom_ops_library(str(path))
    except ORT_ERRORS as error:
        raise LibraryError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({error}); "
            "reinstall semisparse for this platform."
        ) from error
    _registered.add(options)
