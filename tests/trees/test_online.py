# SPDX-License-Identifier: Apache-2.0
"""Costs that are corrected while the engine runs: lines through noisy times, drift and buckets of nodes."""

from __future__ import annotations

import numpy as np
import pytest

from pyspec.trees.cost import CostTable
from pyspec.trees.online import LinearCost, StepCost


def test_linear_cost_is_found() -> None:
    cost = LinearCost(1e-3, 1e-3)
    generator = np.random.default_rng(0)
    for _ in range(300):
        amount = int(generator.integers(1, 30))
        cost.observe(amount, (2e-3 + 5e-4 * amount) * float(np.exp(0.1 * generator.standard_normal())))
    assert cost(1) == pytest.approx(2.5e-3, rel=0.15)
    assert cost(20) == pytest.approx(12e-3, rel=0.1)
    before = cost(10)
    for bad in (float("nan"), float("inf"), 0.0, -1.0):
        cost.observe(10, bad)
    assert cost(10) == before
    cost.observe(10, 100.0)
    assert cost(10) < 1.05 * before
    with pytest.raises(ValueError, match="^LinearCost: base, slope must be finite and >= 0, got -1, 0$"):
        LinearCost(-1.0)
    falling = LinearCost(1e-3, 0.0)
    for amount in (1, 2, 4, 8) * 10:
        falling.observe(amount, 1e-3 / amount)
    assert falling.slope == 0.0
    assert falling.base > 0


def test_drift_and_buckets_are_told_apart() -> None:
    cost = StepCost(CostTable((1, 8), (0,), ((1.0, 2.0),)))
    for _ in range(2000):  # one node as measured, eight nodes half again as much, everything twice
        cost.observe(1, 0, 1, 2.0)
        cost.observe(8, 0, 1, 6.0)
    curve = cost.curve(1, 8, 0, 1)
    assert curve[0] == pytest.approx(2.0, rel=0.03)
    assert curve[7] == pytest.approx(6.0, rel=0.03)
    assert (np.diff(curve) >= 0).all()
    for bad in (float("nan"), 0.0):
        cost.observe(1, 0, 1, bad)
    assert cost.curve(1, 8, 0, 1).tolist() == curve.tolist()
