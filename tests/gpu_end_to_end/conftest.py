# SPDX-License-Identifier: Apache-2.0
"""Settings of the end-to-end tests: the emulators lie in the folders of their own tests."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "triton_emulated")]
