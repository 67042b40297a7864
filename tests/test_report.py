from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from semisparse.bench.timing import Quartiles
from semisparse.report import (
    Comparison,
    Curve,
    MaskSet,
    Report,
    Row,
    Run,
    render,
    render_comparison,
    table,
)
from semisparse.report.charts import mask_picture

ROWS = [
    Row("ONNX Runtime", 0.0, 0.99, 12.0, (11.9, 12.2), 1.0, (1.0, 1.0)),
    Row("semisparse", 0.0, 0.99, 12.3, (12.2, 12.5), 0.98, (0.97, 0.99)),
    Row("semisparse", 0.3, 0.971, 9.0, (8.9, 9.2), 1.33, (1.3, 1.35)),
]
MASK = np.array([[True, False, False], [False, True, True]])
REPORT = Report(
    ROWS,
    [Curve(s, [2.0, 1.0, 0.5], [0.5, 0.8, 0.9], [0.0, s / 2, s]) for s in (0.0, 0.3)],
    [MaskSet(0.3, {"layer1.0.conv1": MASK, "<script>": MASK})],
    {"CPU": "a & b <c>"},
)
SPEEDUP = Quartiles(1.2, 1.3, 1.4)
RUNS = [
    Run(
        "<dense>", "a & b", "9x16", "", 0.0, 0.99, 10_000_000, 0.0, Quartiles(0.9, 1, 1.1), SPEEDUP
    ),
    *(
        Run(
            *(f"r{i}", "m", "9x16", "0.3 nearest" * (i % 2)),
            *(0.1 * i, 0.9, 5_000_000, 0.3, SPEEDUP, SPEEDUP),
        )
        for i in range(8)
    ),
]
VOID = {"meta", "path", "use", "br", "wbr", "link"}


class Page(HTMLParser):
    """Checks nesting and collects ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "srcset", "action", "data"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write_demo(path):
    render(REPORT, path)


def write_comparison(path):
    render_comparison(Comparison("digits", RUNS, {"CPU": "a & b <c>"}), path)


@pytest.fixture(scope="module", params=[write_demo, write_comparison])
def html(request, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    request.param(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_the_page_refers_to_nothing_outside_itself(html):
    assert "http" not in html
    assert "@import" not in html
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.references, "charts have clip paths"
    assert len(set(page.ids)) == len(page.ids)
    assert {reference.strip("'\"") for reference in page.references} <= {
        f"#{name}" for name in page.ids
    }


def test_the_demo_shows_figures_facts_and_layer_names(tmp_path):
    write_demo(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(html)
    text = "".join(page.text)
    for expected in ("97.1%", "9.00", "1.33x", "1.43x", "layer1.0.conv1", "<script>", "a & b <c>"):
        assert expected in text, expected
    assert "<script" not in html


def test_the_comparison_shows_figures_facts_and_names(tmp_path):
    write_comparison(tmp_path / "compare.html")
    page = Page()
    page.feed((tmp_path / "compare.html").read_text())
    text = "".join(page.text)
    for expected in ("<dense>", "99.00%", "5.0", "30%", "1.30x", "a & b <c>", "latency, ms"):
        assert expected in text, expected
    assert [run.kind for run in RUNS[:4]] == ["dense", "dense", "both", "pruned"]


def test_every_colour_of_the_charts_follows_the_theme(html):
    charts = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    colours = set(re.findall(r"(?:stroke|fill): ?([^;\"]+)", charts))
    assert "var(--series-1)" in colours
    assert not [c for c in colours if c.startswith("#") or c in ("black", "white")], colours


def test_the_terminal_table_has_a_line_for_each_row():
    console = Console(file=io.StringIO(), width=120)
    console.print(table(ROWS))
    lines = console.file.getvalue().splitlines()
    assert any(re.search(r"semisparse.*0\.3.*97\.1%.*9\.00.*1\.33x.*1\.43x", x) for x in lines)
    assert any(re.search(r"ONNX Runtime.*1\.00x.*1\.00x", x) for x in lines)


def rasterise(svg: str) -> np.ndarray:
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    masked = np.zeros((height, width), bool)
    for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", svg):
        masked[int(y), int(x) : int(x) + int(length)] = True
    return masked


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_mask_picture_fills_exactly_the_masked_positions(mask):
    assert np.array_equal(rasterise(mask_picture(mask)), ~mask)
