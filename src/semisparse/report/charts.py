"""Charts and mask pictures as inline SVG that takes its colours from the page.

Matplotlib writes fixed colours; these are stand-ins that become CSS variables, so that one picture
serves light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from semisparse.bench.timing import Quartiles
from semisparse.report.comparison import Run
from semisparse.report.results import Curve, Row

_INK, _GRID = "#010201", "#010202"
_SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
_VARIABLES = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    **{stand_in: f"var(--series-{index})" for index, stand_in in enumerate(_SERIES)},
}
_MARKERS = {"dense": "s", "masks": "o", "pruned": "^", "both": "D"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semisparse",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def training_curves(curves: Sequence[Curve]) -> Markup:
    """Training loss, validation accuracy and sparsity over epochs, one line a run."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3), layout="constrained")
        loss, accuracy, sparsity = figure.subplots(1, 3)
        for index, curve in enumerate(curves):
            epochs = np.arange(1, len(curve.train_loss) + 1)
            look = {"color": _SERIES[index], "label": _name(curve.sparsity), "linewidth": 1.8}
            loss.plot(epochs, curve.train_loss, **look)
            accuracy.plot(epochs, 100 * np.asarray(curve.val_accuracy), **look)
            sparsity.plot(epochs, curve.mask_sparsity, **look)
        loss.set_yscale("log")
        for axes, title in (
            (loss, "training loss"),
            (accuracy, "validation accuracy, %"),
            (sparsity, "sparsity of the masks"),
        ):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*loss.get_legend_handles_labels(), loc="outside upper left", ncols=6)
        return _svg(figure, "Training curves")


def tradeoff(rows: Sequence[Row]) -> Markup:
    """Speedup and test accuracy against latency: what masking gains, and what it costs."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        accuracy, speedup = figure.subplots(1, 2)
        _accuracy_by_latency(accuracy, rows)
        _speedup_by_sparsity(speedup, rows[1:])
        return _svg(figure, "Accuracy and speedup")


def _accuracy_by_latency(axes: Axes, rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        low, high = row.latency_quartiles
        axes.errorbar(
            row.latency,
            100 * row.accuracy,
            xerr=[[row.latency - low], [high - row.latency]],
            color=_INK if index == 0 else _SERIES[index - 1],
            marker="s" if index == 0 else "o",
            markersize=8,
            capsize=3,
            linewidth=1,
        )
        axes.annotate(
            "stock dense" if index == 0 else f"{row.sparsity:.1f}",
            (row.latency, 100 * row.accuracy),
            xytext=(0, -16 if index == 0 else 9),
            textcoords="offset points",
            ha="center",
        )
    axes.margins(0.15, 0.35)
    axes.set_title("test accuracy on digits, %")
    axes.set_xlabel("latency of ResNet18, ms")


def _speedup_by_sparsity(axes: Axes, rows: Sequence[Row]) -> None:
    at = [row.sparsity for row in rows]
    # What skipping can gain starts from our own dense run, which need not be as fast as stock.
    dense = next((row.speedup for row in rows if row.sparsity == 0), 1.0)
    limits = np.linspace(0, max(at), 50)
    axes.plot(limits, dense / (1 - limits), color=_INK, linestyle=":", label="dense x 1/(1-s)")
    axes.plot(at, [row.speedup for row in rows], color=_GRID, linewidth=1.2)
    for index, row in enumerate(rows):
        low, high = row.speedup_quartiles
        axes.errorbar(
            row.sparsity,
            row.speedup,
            yerr=[[row.speedup - low], [high - row.speedup]],
            color=_SERIES[index],
            marker="o",
            markersize=8,
            capsize=3,
            linewidth=1,
        )
    axes.axhline(1, color=_GRID, linewidth=1.2)
    axes.margins(0.1, 0.2)
    axes.set_title("speedup of ResNet18 over stock dense ONNX Runtime")
    axes.set_xlabel("sparsity")
    axes.legend(loc="upper left")


def runs(compared: Sequence[Run]) -> Markup:
    """Test accuracy against what masks leave out, and against latency where it was measured."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        timed = all(run.latency is not None for run in compared)
        sparsity, *latency = figure.subplots(1, 1 + timed, squeeze=False)[0]
        _accuracies(sparsity, compared, [(run.skipped, 0.0, 0.0) for run in compared])
        sparsity.set_xlabel("share of the operations that masks leave out")
        for axes in latency:
            _accuracies(axes, compared, [_milliseconds(run.latency) for run in compared])
            axes.set_xlabel("latency, ms")
        return _svg(figure, "Accuracy of runs")


def _accuracies(
    axes: Axes, compared: Sequence[Run], places: Sequence[tuple[float, float, float]]
) -> None:
    """One point a run, at `(x, distance to the lower quartile, to the upper one)`."""
    for index, (run, (x, below, above)) in enumerate(zip(compared, places, strict=True)):
        axes.errorbar(
            x,
            100 * run.accuracy,
            xerr=[[below], [above]],
            color=_INK if run.kind == "dense" else _SERIES[index % len(_SERIES)],
            marker=_MARKERS[run.kind],
            markersize=8,
            capsize=3,
            linewidth=1,
        )
        axes.annotate(
            run.name,
            (x, 100 * run.accuracy),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
        )
    axes.margins(0.2, 0.3)
    axes.set_title("test accuracy, %")


def _milliseconds(latency: Quartiles | None) -> tuple[float, float, float]:
    assert latency is not None
    low, median, high = 1e3 * latency.low, 1e3 * latency.median, 1e3 * latency.high
    return median, median - low, high - median


def mask_picture(mask: NDArray[np.bool_]) -> Markup:
    """A mask `[H_out, W_out]`; the masked positions are filled."""
    height, width = mask.shape
    path = "".join(
        f"M{start} {y}h{end - start}v1h{start - end}z"
        for y, row in enumerate(~mask)
        for start, end in _runs(row)
    )
    return Markup(
        f'<svg class="mask" viewBox="0 0 {width} {height}" shape-rendering="crispEdges" '
        f'role="img" aria-label="mask of {height} by {width} positions"><path d="{path}"/></svg>'
    )


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _name(sparsity: float) -> str:
    return f"sparsity {sparsity:.1f}" if sparsity else "dense"


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    # No metadata: it would name outside vocabularies and the time of day.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    # Inside HTML, SVG needs neither prologue nor namespaces.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    text = text.replace("xlink:href", "href")
    # Ids are unique per picture only.
    slug = label.lower().replace(" ", "-")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{slug}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    text = text.replace("<svg", f'<svg class="chart" role="img" aria-label="{label}"', 1)
    return Markup(text)
