# SPDX-License-Identifier: Apache-2.0
"""Paths of the helpers of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
