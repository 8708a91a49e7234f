# SPDX-License-Identifier: Apache-2.0
"""Settings of the Triton tests: one of the two emulations is on, and outputs are poisoned with NaN."""

from __future__ import annotations

import sys
from pathlib import Path

import emulation
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "ops"))  # sampling_fuzz.py: hard rows for every backend
torch.set_num_threads(1)  # the tensors are tiny
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True, warn_only=True)

emulation.start()


def pytest_configure(config: pytest.Config) -> None:
    """NaN and infinity are values like others to a GPU; numpy warns of them where the
    emulations compute."""
    for module in ("triton.runtime.interpreter", "interpreter", "ttsem.values"):
        config.addinivalue_line("filterwarnings", f"ignore::RuntimeWarning:{module}")
