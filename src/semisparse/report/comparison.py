"""Finished runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semisparse.bench.tables import Table
from semisparse.bench.timing import Quartiles


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: unique among those that are compared.
        model: the name of its architecture.
        input: height x width of its images, and `whole` where nothing was cut off, as
            `180x320 whole`.
        masks: what they are, in words; empty for a run without.
        pruned: share of the architecture's channels that it lacks.
        accuracy: on the test split, in [0, 1].
        flops: operations on one image, masked positions left out.
        skipped: share of its operations that masks leave out.
        latency: seconds of an image; `None` if it was not timed.
        speedup: over the first run, from paired samples; `None` likewise.
    """

    name: str
    model: str
    input: str
    masks: str
    pruned: float
    accuracy: float
    flops: int
    skipped: float
    latency: Quartiles | None = None
    speedup: Quartiles | None = None

    @property
    def kind(self) -> str:
        """`dense`, `masks`, `pruned` or `both`."""
        if self.masks:
            return "both" if self.pruned else "masks"
        return "pruned" if self.pruned else "dense"


@dataclass(frozen=True)
class Comparison:
    """Runs on the same data; facts are `label: value` lines on how they were measured."""

    data: str
    runs: Sequence[Run]
    facts: Mapping[str, Any]

    @property
    def timed(self) -> bool:
        """Whether there are latencies."""
        return all(run.latency is not None for run in self.runs)

    @property
    def inputs_differ(self) -> bool:
        """Whether the runs prepared their images differently."""
        return len({run.input for run in self.runs}) > 1


def comparison_table(comparison: Comparison) -> Table:
    """The runs as a table of text, with their inputs where these differ."""
    first = comparison.runs[0].name
    columns = [
        "run",
        "model",
        *(["input"] if comparison.inputs_differ else []),
        "masks",
        "channels pruned",
        "test accuracy",
        "MFLOP",
        "of them masked",
    ]
    if comparison.timed:
        columns += ["ms (quartiles)", f"speedup over {first}"]
    return Table(
        title=f"Runs on {comparison.data}",
        columns=tuple(columns),
        rows=tuple(_cells(run, comparison.inputs_differ) for run in comparison.runs),
        notes=tuple(f"{name}: {value}." for name, value in comparison.facts.items()),
    )


def _cells(run: Run, with_input: bool) -> tuple[str, ...]:
    cells = [
        run.name,
        run.model,
        *([run.input] if with_input else []),
        run.masks or "—",
        f"{run.pruned:.0%}" if run.pruned else "—",
        f"{run.accuracy:.2%}",
        f"{run.flops / 1e6:.1f}",
        f"{run.skipped:.0%}" if run.skipped else "—",
    ]
    if run.latency and run.speedup:
        low, median, high = (
            1e3 * value for value in (run.latency.low, run.latency.median, run.latency.high)
        )
        cells += [f"{median:.3f} ({low:.3f}-{high:.3f})", f"{run.speedup.median:.2f}x"]
    return tuple(cells)
