"""The shape of the house (docs/architecture.md): who may import whom, and what stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "semisparse"

# Each room may import from the rooms to the left of it in a chain that it is in.
CHAINS = [
    (
        "errors, files image_size config blocks, "
        "masks blue_noise schedules selection batches trace, "
        "rules region, importance, layers, sparsifier, ops, export, training, tune"
    ),
    "errors, files image_size, runtime, native feeds, check doctor, bench, report, tune",
]
# Single files with one more door, and why.
DOORS = {
    "export/verify.py": {"runtime", "check"},  # runs what was exported before it is kept
    "export/metadata.py": {"check"},  # writes the format that check reads
    "bench/harness.py": {"config"},  # which fills there are
    "bench/work.py": {"ops"},  # what planes the layers of an operator have
    "bench/models.py": {"config", "sparsifier", "export", "training"},  # builds models by name
}
ANYWHERE = {"_torchvision"}
ON_TOP = {"cli", "__main__"}
RUNTIME_SIDE = ["runtime", "native", "feeds", "check", "doctor", "bench", "report", "cli"]

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The module or folder right below the package; "" is the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


ROOMS = {room_of(path) for path in FILES} - {""}


def leftward() -> dict[str, set[str]]:
    left: dict[str, set[str]] = {}
    for chain in CHAINS:
        passed: set[str] = set()
        for group in chain.split(", "):
            for room in group.split():
                left.setdefault(room, set()).update(passed)
            passed.update(group.split())
    return left


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports, at the top or within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imports(path))
    return {part[1] for part in parts if part[0] == "semisparse" and len(part) > 1} & ROOMS


def test_every_room_has_its_place():
    assert set(leftward()) == ROOMS - ON_TOP - ANYWHERE


def test_every_room_is_in_the_document():
    document = (ROOT / "docs" / "architecture.md").read_text()
    missing = {
        room for room in ROOMS - ON_TOP - ANYWHERE if not re.search(rf"\b{room}\b", document)
    }
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_leftward(path):
    room, name = room_of(path), path.relative_to(PACKAGE).as_posix()
    if room in ON_TOP | {""}:
        return
    allowed = leftward().get(room, set()) | DOORS.get(name, set()) | ANYWHERE | {room}
    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_lazy_root_is_no_way_round(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "semisparse"
        ):
            assert node.attr in ("__version__", "__path__")


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("room", RUNTIME_SIDE)
def test_runtime_side_imports_no_torch(room):
    code = f"""
import importlib, pkgutil, sys
root = importlib.import_module("semisparse.{room}")
names = [m.name for m in pkgutil.walk_packages(getattr(root, "__path__", []), root.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print([name for name in ("torch", "lightning", "torchvision") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("room", ["runtime", "native", "feeds", "check", "doctor"])
def test_deployment_needs_numpy_and_onnxruntime_only(room):
    imported = {name.split(".")[0] for name in imports(PACKAGE / f"{room}.py")}
    others = imported - set(sys.stdlib_module_names) - {"semisparse", "numpy", "onnxruntime"}
    assert not others


def test_importing_the_package_is_free():
    code = """
import sys
before = set(sys.modules)
import semisparse
print(*sorted(set(sys.modules) - before))
"""
    loaded = run_python(code).split()
    assert "semisparse" in loaded
    # importlib and typing, with what they need; numpy alone brings over 100.
    assert len(loaded) < 60
    assert "numpy" not in loaded


def test_names_of_the_root_are_those_it_lists():
    code = """
import semisparse
for name in semisparse.__all__:
    assert getattr(semisparse, name) is not None, name
assert set(semisparse._HOMES) | {"__version__"} == set(semisparse.__all__)
try:
    semisparse.nothing
except AttributeError as error:
    print(error)
"""
    assert "nothing" in run_python(code)


def native_includes() -> list[tuple[str, str]]:
    native = ROOT / "native"
    files = [path for path in native.rglob("*") if path.suffix in (".h", ".cc", ".inc")]
    assert files
    return [
        (path.relative_to(native).as_posix(), included)
        for path in files
        for included in re.findall(
            r'^\s*#\s*include\s*[<"](.+?)[>"]', path.read_text(), re.MULTILINE
        )
    ]


def test_native_knows_no_python():
    assert not [entry for entry in native_includes() if "ython.h" in entry[1]]


def test_onnxruntime_is_known_in_ort_only():
    outside = [
        (name, included)
        for name, included in native_includes()
        if not name.startswith(("ort/", "tests/"))
    ]
    assert outside
    assert not [entry for entry in outside if re.search(r"onnxruntime|\bort/", entry[1])]


def test_the_public_header_stands_alone():
    includes = {included for name, included in native_includes() if name == "include/semisparse.h"}
    assert includes == {"stddef.h", "stdint.h"}


def test_one_version():
    version = re.compile(r"\b0\.\d+\.\d+\b")
    for name in ("pyproject.toml", "CMakeLists.txt"):
        lines = (ROOT / name).read_text().splitlines()
        assert not [line for line in lines if version.search(line) and "semisparse" in line]
