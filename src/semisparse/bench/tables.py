"""Results as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from semisparse.bench.compare import Row, Run
from semisparse.bench.harness import ModelResult, Results, Settings
from semisparse.bench.layers import LayerTime
from semisparse.bench.memory import Footprint
from semisparse.bench.timing import BUSY_CORES, Quartiles


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """As a Markdown section."""
        lines = [
            f"### {self.title}",
            "",
            _line(self.columns),
            _line(["---", *["---:"] * (len(self.columns) - 1)]),
            *map(_line, self.rows),
            "",
            *(f"{note}  " for note in self.notes),
        ]
        return "\n".join(lines).rstrip() + "\n"


def markdown(results: Results) -> str:
    """All of the results as a Markdown document."""
    lines = [*machine_lines(results), *mask_lines(results.settings)]
    parts = ["## Benchmark\n", "".join(f"- {line}\n" for line in lines)]
    for result in results.models:
        parts.extend(table.markdown() for table in model_tables(result))
    return "\n".join(parts)


def machine_lines(results: Results) -> list[str]:
    """What the figures are from."""
    machine = results.machine
    governor = machine["governor"] or "not readable"
    packages = {
        package: version
        for versions in (machine["versions"], *results.peer_versions.values())
        for package, version in versions.items()
    }
    return [
        f"{results.date}, {machine['cpu']}, {machine['cores']} cores, governor {governor}",
        f"instruction set {machine['isa']}, kernels {', '.join(machine['kernels'])}",
        ", ".join(f"{package} {version}" for package, version in packages.items()),
    ]


def mask_lines(settings: Settings) -> list[str]:
    """Where the masks are, if not everywhere."""
    where = [
        *([f"on {', '.join(settings.only)} only"] if settings.only else []),
        *([f"not on {', '.join(settings.skip)}"] if settings.skip else []),
        *(["in turns from residual block to residual block"] if settings.alternate else []),
    ]
    return [f"masks {', '.join(where)}"] if where else []


def model_tables(result: ModelResult) -> list[Table]:
    """The tables of one model: for each number of threads latencies, layers and memory."""
    tables = []
    for run in result.runs:
        where = f"{run.threads} thread{'s' if run.threads > 1 else ''}"
        shape = "x".join(map(str, result.input_shape))
        tables.append(_latency_table(f"{result.name}, {shape}, {where}", result, run))
        for name, rows in run.layers.items():
            tables.append(_layer_table(f"{result.name}, {name}, {where}", rows, run.peak.flops))
        if run.memory:
            tables.append(_memory_table(f"{result.name}, sessions, {where}", run.memory))
    return tables


def _latency_table(title: str, result: ModelResult, run: Run) -> Table:
    peers = tuple(dict.fromkeys((run.fastest_peer, "onnxruntime")))
    columns = (
        "candidate",
        "ms (quartiles)",
        *(f"speedup over {peer or 'the fastest peer'}" for peer in peers),
        "limit",
        "GFLOP/s",
        "of FMA peak",
        "cores",
    )
    rows = [_latency_cells(row, run, peers) for row in run.rows]
    rows += [(f"{name}: missing", *["—"] * (len(columns) - 1)) for name in run.missing]
    notes = [
        f"{result.flops / 1e9:.2f} GFLOP dense.",
        f"FMA peak {run.peak.flops / 1e9:.0f} GFLOP/s, copy {run.peak.copy / 1e9:.1f} GB/s.",
        *(f"{name} is missing: {reason}." for name, reason in run.missing.items()),
    ]
    if run.unsettled:
        notes.append(f"{run.unsettled} samples were taken beside threads that were still busy.")
    if any(row.cores < BUSY_CORES for row in run.rows):
        notes.append("Other processes took CPU time from some candidates: the figures are spoilt.")
    return Table(title, columns, tuple(rows), tuple(notes))


def _latency_cells(row: Row, run: Run, peers: tuple[str | None, ...]) -> tuple[str, ...]:
    flops = row.flops / row.latency.median
    return (
        row.name,
        _quartiles(row.latency, scale=1e3),
        *(_speedup(row, peer) for peer in peers),
        f"{row.limit:.2f}" if row.limit > 1 else "",
        f"{flops / 1e9:.0f}",
        f"{flops / run.peak.flops:.0%}",
        f"{row.cores:.2f}",
    )


def _speedup(row: Row, over: str | None) -> str:
    return _quartiles(row.speedup[over]) if over in row.speedup else "—"


def _layer_table(title: str, rows: tuple[LayerTime, ...], peak: float) -> Table:
    cells = []
    for row in rows:
        flops = row.flops / row.seconds if row.seconds else 0.0
        stock = row.stock_seconds
        cells.append(
            (
                _short(row.name),
                "+".join("x".join(map(str, weights)) for weights in row.weights),
                "x".join(map(str, row.plane)) if row.weights else "",
                f"{row.sparsity:.2f}" if row.weights else "",
                f"{row.flops / 1e6:.1f}" if row.weights else "",
                f"{row.seconds * 1e6:.0f}",
                f"{flops / 1e9:.0f}" if row.weights else "",
                f"{flops / peak:.0%}" if row.weights else "",
                "—" if stock is None else f"{stock * 1e6:.0f}",
                "—" if not stock or not row.seconds else f"{stock / row.seconds:.2f}",
            )
        )
    columns = (
        "layer",
        "weights",
        "plane",
        "masked",
        "MFLOP",
        "µs",
        "GFLOP/s",
        "of FMA peak",
        "onnxruntime µs",
        "speedup",
    )
    return Table(title, columns, tuple(cells))


def _short(name: str) -> str:
    """A chain's name, with the words that all of its layers begin with only once."""
    first, *others = (layer.split(".") for layer in name.split("+"))
    shared = takewhile(lambda words: len(set(words)) == 1, zip(first, *others, strict=False))
    words = len(list(shared))
    return "+".join(".".join(part) for part in (first, *(layer[words:] for layer in others)))


def _memory_table(title: str, footprints: tuple[Footprint, ...]) -> Table:
    stock = footprints[0]
    rows = tuple(
        (
            footprint.name,
            f"{footprint.peak_bytes / 2**20:.0f}",
            f"{footprint.peak_bytes / stock.peak_bytes:.2f}",
            f"{footprint.create_seconds * 1e3:.0f}",
            f"{footprint.create_seconds / stock.create_seconds:.2f}",
        )
        for footprint in footprints
    )
    columns = ("session", "peak MiB", "of onnxruntime's", "creation ms", "of onnxruntime's")
    return Table(title, columns, rows)


def _quartiles(values: Quartiles, scale: float = 1.0) -> str:
    return f"{values.median * scale:.2f} ({values.low * scale:.2f}-{values.high * scale:.2f})"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
