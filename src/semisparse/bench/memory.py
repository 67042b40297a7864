"""Peak memory and creation time of a session, each in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from semisparse.bench.models import Model
from semisparse.errors import SemisparseError

_CALLS = 3


@dataclass(frozen=True)
class Footprint:
    """A session's cost, medians over the processes.

    Attributes:
        name: the variant's, or "onnxruntime" for the dense model without our library.
        create_seconds: from the path to a session that can run, loading our library included.
        peak_bytes: highest resident memory while the session was created and called, less what
            the process had before.
    """

    name: str
    create_seconds: float
    peak_bytes: int


def measure(model: Model, threads: int, *, repeats: int = 5) -> tuple[Footprint, ...]:
    """Measures every variant, and the dense model in stock ONNX Runtime first, in turns.

    Raises:
        SemisparseError: a process failed.
    """
    files = {"onnxruntime": (model.dense, False)}
    files |= {variant.name: (variant.path, True) for variant in model.variants}
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in files}
    for _ in range(repeats):
        for name, (path, library) in files.items():
            taken[name].append(_in_fresh_process(path, threads, library))
    return tuple(
        Footprint(
            name,
            statistics.median(seconds for seconds, _ in pairs),
            round(statistics.median(size for _, size in pairs)),
        )
        for name, pairs in taken.items()
    )


def _in_fresh_process(path: Path, threads: int, library: bool) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(path), str(threads), str(int(library))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SemisparseError(
            f"Measuring the memory of {path} failed with exit status {done.returncode}: "
            f"{done.stderr.strip()[-300:]}"
        )
    seconds, size = json.loads(done.stdout)
    return seconds, size


def _kilobytes(field: str) -> int:
    # Not getrusage: after an exec its maximum is still that of the process that forked.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise SemisparseError(f"/proc/self/status has no field {field}; measure memory on Linux.")


def _main() -> None:
    from semisparse.bench.peers.onnxruntime import session_options
    from semisparse.feeds import random_feeds
    from semisparse.runtime import InferenceSession

    path, threads, library = sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3]))
    before = _kilobytes("VmRSS")
    start = time.perf_counter()
    session = InferenceSession(path, sess_options=session_options(threads), library=library)
    seconds = time.perf_counter() - start
    feeds = random_feeds(session, seed=0)
    for _ in range(_CALLS):
        session.run(None, feeds)
    print(json.dumps([seconds, (_kilobytes("VmHWM") - before) * 1024]))


if __name__ == "__main__":
    _main()
