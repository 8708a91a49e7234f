# SPDX-License-Identifier: Apache-2.0
"""Settings of every test: uninitialised outputs are poisoned with NaN, so a kernel that forgets an element fails."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("ops", "models")]

torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True, warn_only=True)
