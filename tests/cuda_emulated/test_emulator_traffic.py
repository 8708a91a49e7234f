# SPDX-License-Identifier: Apache-2.0
"""What the bench of traffic counts on its quick cases is near the least that the ops must move."""

from __future__ import annotations

import pytest

from bench import bench_gpu_traffic
from bench.gpu_launches import import_emulator
from bench.harness import GateError, Options

# metric: the most it may be (tree_attention, w4a16_linear)
LIMITS = {
    "traffic_over_minimum": (1.02, 1.02),
    "l2_over_minimum": (1.25, 3.0),  # blocks of a linear layer read the rows again, from L2
    "bank_conflicts": (2.0, 2.0),
}


def test_quick_cases_are_near_the_minimum() -> None:
    rows = list(bench_gpu_traffic.rows(Options(quick=True)))
    assert {row["bench"] for row in rows} == {"tree_attention", "w4a16_linear"}
    for row in rows:
        limits = LIMITS.get(row["metric"])
        if limits:
            assert row["value"] <= limits[row["bench"] == "w4a16_linear"], row
        if row["metric"] == "useful_mma_share":
            assert 0.1 <= row["value"] <= 1, row


def test_wrong_results_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that computes something else ends the bench."""
    emulator = import_emulator()
    call = emulator.call
    monkeypatch.setattr(
        emulator, "call", lambda *args, **kwargs: tuple(x * 1.1 for x in call(*args, **kwargs))
    )
    with pytest.raises(GateError, match="differs from its specification"):
        next(bench_gpu_traffic.rows(Options(quick=True)))
