from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisparse.schedules import progress_at, sparsity_at

fractions = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
finals = st.floats(0, 0.99)


@given(st.integers(1, 500), fractions)
def test_progress_is_a_ramp_between_the_fractions(total: int, ends: list[float]) -> None:
    begin, end = ends
    steps = np.arange(total + 10)
    got = np.array([progress_at(int(step), total, begin=begin, end=end) for step in steps])
    width = (end - begin) * total
    if width > 1e-6:
        expected = np.clip((steps - begin * total) / width, 0, 1)
        np.testing.assert_allclose(got, expected, atol=1e-9)
    assert (np.diff(got) >= 0).all()
    assert got[-1] == 1


@given(finals, finals, st.floats(0.1, 9))
def test_sparsity_is_the_polynomial(initial: float, final: float, power: float) -> None:
    t = np.linspace(0, 1, 21)
    got = [sparsity_at(float(p), initial=initial, final=final, power=power) for p in t]
    np.testing.assert_allclose(got, final + (initial - final) * (1 - t) ** power, atol=1e-15)
    assert got[0] == pytest.approx(initial, abs=1e-15)
    assert got[-1] == final


def test_known_values_of_the_default() -> None:
    def at(step: int) -> float:
        progress = progress_at(step, 100, begin=0.1, end=0.9)
        return sparsity_at(progress, initial=0, final=0.4, power=2)

    assert [at(s) for s in (0, 10, 90, 99, 1000)] == [0, 0, 0.4, 0.4, 0.4]
    assert at(50) == pytest.approx(0.3)


def test_equal_fractions_are_a_jump() -> None:
    assert [progress_at(s, 10, begin=0.5, end=0.5) for s in (4, 5, 6)] == [0, 1, 1]
    assert progress_at(0, 10, begin=0, end=0) == 1
