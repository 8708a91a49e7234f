# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels executed on the CPU by tests/cuda_emulator: skipped with the reason where that cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from cuda_emulator import build  # noqa: E402

HERE = Path(__file__).parent
torch.set_num_threads(1)  # those of a second one would spin beside the emulator's


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that cannot emulate says why in every test."""
    if reason := build.why_not():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=reason))
