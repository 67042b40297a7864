"""Which option each unit takes: a choice that is exact, by integer programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from semisparse.tune.table import Option, Unit

Costs = Mapping[tuple[str, Option], float]


def gain(unit: Unit, option: Option) -> float:
    """Seconds that an option saves."""
    return option.saved * unit.seconds


def largest_gain(units: Sequence[Unit], costs: Costs) -> float:
    """Seconds that all units together can save."""
    return sum(
        max((gain(unit, option) for option in _open(unit, costs)), default=0.0) for unit in units
    )


def allocate(units: Sequence[Unit], costs: Costs, needed: float) -> dict[str, Option]:
    """The options of least total cost that together save what is needed.

    A unit takes one of its options or stays dense. The multiple-choice knapsack problem, solved by
    HiGHS through `scipy.optimize.milp`.

    Args:
        units: measured.
        costs: by the unit's name and its option, from 0; an option without is not open.
        needed: seconds, no more than `largest_gain`.

    Returns:
        The option of each unit that is not dense, by the unit's name.
    """
    choices = [(index, option) for index, unit in enumerate(units) for option in _open(unit, costs)]
    if needed <= 0 or not choices:
        return {}
    gains = np.array([gain(units[index], option) for index, option in choices])
    prices = np.array([costs[units[index].name, option] for index, option in choices])
    owner = np.array([index for index, _ in choices])
    one_each = (owner == np.arange(len(units))[:, None]).astype(float)
    # In units of what is needed and of the dearest option: the solver's tolerances are absolute.
    # Of the sum that is just enough, rounding may leave a part in 1e9 missing.
    solution = milp(
        prices / max(prices.max(), np.finfo(float).tiny),
        constraints=[
            LinearConstraint(one_each, ub=1),
            LinearConstraint(gains[None] / needed, lb=1 - 1e-9),
        ],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    if solution.x is None:
        raise ValueError(
            f"{needed} s are needed, but only {largest_gain(units, costs)} s can be saved: "
            f"{solution.message}"
        )
    return {
        units[index].name: option
        for (index, option), taken in zip(choices, solution.x, strict=True)
        if taken > 0.5
    }


def _open(unit: Unit, costs: Costs) -> list[Option]:
    return [option for option in unit.options if option.pays and (unit.name, option) in costs]
