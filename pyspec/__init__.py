# SPDX-License-Identifier: Apache-2.0
"""Exact and fast speculative decoding with token trees: kernels, their specification, and an engine."""

from __future__ import annotations

from pyspec import backends, spec
from pyspec.backends import explain
from pyspec.errors import UnsupportedError

__version__ = "0.1.0"
__all__ = ["UnsupportedError", "__version__", "explain", "ops", "spec"]

backends.load_native()

from pyspec import ops  # noqa: E402 - its functions need the backends loaded
