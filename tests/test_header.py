from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ExportError, ModelError
from semisparse.export.header import export_header
from semisparse.layers import attach, masked_layers
from semisparse.sparsifier import Sparsifier

COMPILERS = pytest.mark.parametrize(
    ("compiler", "suffix"),
    [
        (["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"], ".c"),
        (["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic"], ".cpp"),
    ],
    ids=["c99", "c++17"],
)
NASTY_NAMES = [
    "a",
    "a.rows",
    "a_rows",
    "A",
    "a_",
    "a_2",
    "0",
    "int",
    "class",
    "__x__",
    "*/ #error",
    "né\n",
    "💥",
    "???",
]


def nasty_model() -> nn.Module:
    model = nn.Module()
    for index, name in enumerate(NASTY_NAMES):
        conv = nn.Conv2d(1, 1, 1)
        attach(conv, 2 + index % 3, 3, "bias")
        conv.set_mask(torch.rand(2 + index % 3, 3) > 0.5)
        if "." in name:
            parent, leaf = name.split(".")
            model.get_submodule(parent).add_module(leaf, conv)
        else:
            model.add_module(name, conv)
    return model


def compile_and_run(folder: Path, compiler: list[str], suffix: str, body: str) -> list[str]:
    source = folder / f"main{suffix}"
    source.write_text(
        f'#include "masks.h"\n#include "masks.h"\n#include <stdio.h>\n'
        f"int main(void) {{\n{body}\n  return 0;\n}}\n"
    )
    program = folder / "main"
    subprocess.run([*compiler, str(source), "-o", str(program)], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


@COMPILERS
def test_a_program_reads_the_masks_back(tmp_path: Path, compiler: list[str], suffix: str) -> None:
    torch.manual_seed(0)
    model = nasty_model()
    path = export_header(model, tmp_path / "masks.h")
    text = path.read_text()
    arrays = re.findall(r"^static const uint8_t (\w+)\[", text, flags=re.MULTILINE)
    layers = masked_layers(model)
    assert len(arrays) == len(set(arrays)) == len(layers) == len(NASTY_NAMES)
    body = "\n".join(
        f"""
  for (int r = 0; r < {array.upper()}_ROWS; ++r)
    for (int c = 0; c < {array.upper()}_COLS; ++c) printf("%d", {array}[r][c]);
  printf(" %d %d\\n", {array.upper()}_ROWS, {array.upper()}_COLS);"""
        for array in arrays
    )
    output = compile_and_run(tmp_path, compiler, suffix, body)
    expected = []
    for layer in layers.values():
        bits = "".join(str(int(value)) for value in layer.mask.flatten())
        expected += [bits, *(str(side) for side in layer.mask.shape)]
    assert output == expected


@COMPILERS
def test_unused_arrays_give_no_warning(tmp_path: Path, compiler: list[str], suffix: str) -> None:
    export_header(nasty_model(), tmp_path / "masks.h")
    assert compile_and_run(tmp_path, compiler, suffix, "") == []


def test_names_and_layout_of_a_usual_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3, stride=2)))
    config = SparsityConfig(sparsity=0.3)
    sparsifier = Sparsifier(model, torch.zeros(1, 3, 12, 10), config, total_steps=1)
    sparsifier.freeze()
    first = export_header(model, str(tmp_path / "masks.h")).read_bytes()
    assert export_header(model, tmp_path / "masks.h").read_bytes() == first
    lines = first.decode().splitlines()
    assert lines[1:3] == ["#ifndef SEMISPARSE_MASKS_H_", "#define SEMISPARSE_MASKS_H_"]
    start = lines.index("/* 1.0 */")
    assert lines[start + 1 : start + 4] == [
        "#define MASK_1_0_ROWS 4",
        "#define MASK_1_0_COLS 3",
        "static const uint8_t mask_1_0[4][3] = {",
    ]
    rows = sparsifier.masks["1.0"].int().tolist()
    assert lines[start + 4] == f"  {{{', '.join(map(str, rows[0]))}}},"


def test_a_model_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no masked layer"):
        export_header(nn.Conv2d(1, 1, 1), tmp_path / "masks.h")


def test_an_unwritable_path_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.h").mkdir()
    for path in ("nowhere/masks.h", "file/masks.h", "folder.h"):
        with pytest.raises(ExportError, match=re.escape(path)):
            export_header(nasty_model(), tmp_path / path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.h"]
    assert (tmp_path / "file").read_text() == "kept"
