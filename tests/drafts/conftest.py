# SPDX-License-Identifier: Apache-2.0
"""Property tests repeat the same examples on every run and have no time limit of their own."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pyspec", deadline=None, derandomize=True)
settings.load_profile("pyspec")
