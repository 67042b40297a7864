"""Sparsity as a function of the training step."""

from __future__ import annotations


def progress_at(step: int, total_steps: int, *, begin: float, end: float) -> float:
    """How far the schedule has come, in [0, 1]: 0 before ``begin``, 1 from ``end`` on.

    Args:
        step: steps taken before this one, from 0.
        total_steps: steps of the whole training.
        begin: where the schedule starts, as a fraction of ``total_steps``.
        end: where it ends; equal to ``begin`` the schedule is a jump.
    """
    first, last = begin * total_steps, end * total_steps
    if step >= last:
        return 1.0
    if step <= first:
        return 0.0
    return (step - first) / (last - first)


def sparsity_at(progress: float, *, initial: float, final: float, power: float) -> float:
    """Polynomial decay of Zhu & Gupta (arXiv 1710.01878, section 3; there the power is 3).

    ``final + (initial - final) * (1 - progress) ** power``; exactly ``initial`` at progress 0 and
    ``final`` at 1.
    """
    remaining: float = (1 - progress) ** power
    return final + (initial - final) * remaining
