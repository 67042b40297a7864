"""What masks add to a training step: time and memory against the same model without masks.

    python benchmarks/train_step.py --model torchvision/resnet18 --batch-size 16
    python benchmarks/train_step.py --compile --channels-last --memory

A round takes one step of every candidate, so that drift of the machine cancels in the ratios of a
round. `drawing` draws new masks before every step, as the paper does while the schedule runs;
`frozen` has fixed ones. A step is the mask's, forward, backward, the optimizer's, and the report of the
loss. Memory is the peak of a process that does nothing else, less what it had before the model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import semisparse
from semisparse.training import models

CLASSES = 1000


@dataclass(frozen=True)
class Candidate:
    """A way to train: the fill of its masks and whether they are frozen; no fill is plain."""

    fill: str | None = None
    frozen: bool = False

    def __str__(self) -> str:
        if self.fill is None:
            return "plain"
        return f"{self.fill}, {'frozen' if self.frozen else 'drawing'}"


CANDIDATES = [
    Candidate(),
    *(Candidate(fill, frozen) for fill in ("bias", "nearest") for frozen in (False, True)),
]


def step_of(candidate: Candidate, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one training step."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    order = torch.channels_last if options.channels_last else torch.contiguous_format
    model = models.create(options.model, CLASSES).to(device, memory_format=order)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, device=device).to(memory_format=order)
    labels = torch.randint(CLASSES, (options.batch_size,), device=device)
    sparsifier = None
    if candidate.fill is not None:
        config = semisparse.SparsityConfig.paper(
            options.sparsity, fill=candidate.fill, begin=0, end=1, initial=options.sparsity
        )
        sparsifier = semisparse.Sparsifier(model, images[:1], config, total_steps=10**6)
        if candidate.frozen:
            sparsifier.freeze()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    network = torch.compile(model) if options.compile else model

    def step() -> None:
        if sparsifier is not None:
            sparsifier.step()
        loss = criterion(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.observe(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak(candidate: Candidate, options: argparse.Namespace) -> float:
    """MB that a process has at most while it trains, above what the libraries take."""
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        before, read = 0.0, lambda: torch.cuda.max_memory_allocated() / 1e6
    else:
        before, read = resident(), resident
    step = step_of(candidate, options)
    for _ in range(3):
        step()
    return read() - before


def resident() -> float:
    """Most MB that this process ever had in memory."""
    # getrusage begins with the parent's peak.
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
    return int(line.split()[1]) / 1e3


def seconds(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Of one step."""
    start = clock()
    step()
    return clock() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    steps = {candidate: step_of(candidate, options) for candidate in CANDIDATES}
    for step in steps.values():
        step()
        step()
    # The processor's time leaves out what other processes take of it, but adds up all threads.
    alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in CANDIDATES}
    for _ in range(options.rounds):
        for candidate, step in steps.items():
            times[candidate].append(seconds(step, clock))
    del steps
    memory = {}
    if options.memory:
        # Spawned, because a fork begins with the memory of this process.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            jobs = [(candidate, options) for candidate in CANDIDATES]
            memory = dict(zip(CANDIDATES, pool.starmap(peak, jobs, chunksize=1), strict=True))

    plain = times[CANDIDATES[0]]
    print("masks | ms (least) | ratio of least | median ratio of a round | peak MB")
    for candidate, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True))
        megabytes = f"{memory[candidate]:.0f}" if memory else "-"
        print(
            f"{candidate!s} | {1000 * min(own):.1f} | {min(own) / min(plain):.3f} | {ratio:.3f} | "
            f"{megabytes}"
        )


if __name__ == "__main__":
    main()
