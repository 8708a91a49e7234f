# SPDX-License-Identifier: Apache-2.0
"""Exact and fast speculative decoding with token trees: kernels, their specification, and an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyspec import backends, spec
from pyspec.backends import explain
from pyspec.errors import UnsupportedError

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Grammar",
    "SamplingParams",
    "UnsupportedError",
    "__version__",
    "explain",
    "ops",
    "plan_tree_attention",
    "spec",
]

backends.load_native()

from pyspec import ops  # noqa: E402 - its functions need the backends loaded
from pyspec.plans import plan_tree_attention  # noqa: E402

if TYPE_CHECKING:
    from pyspec.engine import LLM, Grammar, SamplingParams


def __getattr__(name: str) -> Any:
    """LLM, SamplingParams and Grammar on first use: a kernel caller needs neither tokenizers nor the engine."""
    if name in ("LLM", "SamplingParams", "Grammar"):
        from pyspec import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'pyspec' has no attribute {name!r}")
