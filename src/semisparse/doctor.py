"""The installation against itself: what is there, and does it work."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import semisparse
from semisparse import native
from semisparse.errors import SemisparseError
from semisparse.runtime import InferenceSession, library_path

# doctor.onnx is one ConvFillNearestRelu without a portable body, so that it only runs where the
# library serves it: 1x1 weights 2, bias -3, and the second position copies the first.
_INPUT = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)
_OUTPUT = np.array([0, 0, 3, 5], np.float32).reshape(1, 1, 2, 2)


@dataclass
class Diagnosis:
    """What `semisparse doctor` found; fields that could not be found out are None or empty.

    Attributes:
        versions: of semisparse, Python, numpy, ONNX Runtime and the operator library.
        cpu: model name of the processor.
        library: path of the operator library.
        abi: interface version of the library.
        isas: instruction sets built, best first, and whether this CPU can run them.
        isa: the instruction set in force.
        kernels: kernels built, by symbol name, and whether this CPU can run them.
        accepted: ONNX Runtime ran one operator of the library, with the right result.
        extras: optional extra -> package -> version, None where it is missing.
        problems: sentences; empty when all is well.
    """

    versions: dict[str, str] = field(default_factory=dict)
    cpu: str = ""
    library: str | None = None
    abi: int | None = None
    isas: dict[str, bool] = field(default_factory=dict)
    isa: str | None = None
    kernels: dict[str, bool] = field(default_factory=dict)
    accepted: bool = False
    extras: dict[str, dict[str, str | None]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong; a missing extra is not wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose() -> Diagnosis:
    """Examine this installation on this machine. Problems are reported, never raised."""
    found = Diagnosis()
    found.versions = {
        "semisparse": semisparse.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    found.cpu = _cpu()
    found.extras = _extras()
    for examine in (_library, _isa, _operator):
        try:
            examine(found)
        except SemisparseError as error:
            found.problems.append(str(error))
            if found.library is None:
                break
    return found


def _library(found: Diagnosis) -> None:
    path = library_path()
    native.load()
    found.library = str(path)
    found.abi = native.ABI_VERSION
    found.versions["library"] = native.version()
    if native.version() != semisparse.__version__:
        found.problems.append(
            f"{path} is version {native.version()}, the package is {semisparse.__version__}; "
            "reinstall semisparse, or unset SEMISPARSE_LIBRARY."
        )


def _isa(found: Diagnosis) -> None:
    found.isas = native.isa_names()
    found.kernels = native.kernels()
    found.isa = native.isa()


def _operator(found: Diagnosis) -> None:
    model = files("semisparse").joinpath("doctor.onnx").read_bytes()
    (output,) = InferenceSession(model).run(None, {"input": _INPUT})
    found.accepted = bool(np.array_equal(output, _OUTPUT))
    if not found.accepted:
        found.problems.append(
            f"The operator library gave {output.ravel().tolist()} in ONNX Runtime where "
            f"{_OUTPUT.ravel().tolist()} is right; force another instruction set with "
            f"SEMISPARSE_ISA ({', '.join(found.isas)}) and report this with the output of "
            "`semisparse doctor --json`."
        )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _extras() -> dict[str, dict[str, str | None]]:
    try:
        requirements = metadata.requires("semisparse") or []
    except metadata.PackageNotFoundError:  # run from the sources without an installation
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
        if package and extra and package.group() != "semisparse":
            extras.setdefault(extra.group(1), {})[package.group()] = _version(package.group())
    return extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
