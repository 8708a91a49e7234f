# SPDX-License-Identifier: Apache-2.0
"""Launches noted instead of run, and those that the budgets of shared memory and occupancy are made from."""

from __future__ import annotations

import torch
from cuda_emulator import emulator

from bench import gpu_budgets, gpu_launches


def test_launches_are_noted_and_not_run() -> None:
    x = torch.ones(3, 4096)
    with emulator.recording() as launches:
        result = emulator.call("rms_norm", x, torch.ones(4096), eps=1e-5)
    assert [(one.source, one.blocks, one.threads, one.shared_bytes) for one in launches] == [
        ("rms_norm", 3, 512, 64)
    ]
    assert "norm_rows<true>" in launches[0].kernel
    assert result.isnan().all()  # as the emulator allocates it
    assert emulator.call("rms_norm", x, torch.ones(4096), eps=1e-5).isfinite().all()


def test_the_budgets_have_the_launches_of_the_sources() -> None:
    assert gpu_budgets.load().launches == gpu_launches.as_json(gpu_launches.record())
