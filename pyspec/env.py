# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that the package reads (at most six, documented in README.md)."""

from __future__ import annotations

import os
from pathlib import Path


def isa() -> str | None:
    """`PYSPEC_ISA`: instruction set forced for the CPU kernels: generic, avx2, avx512, avx512_bf16, amx, neon, neon_dotprod or neon_i8mm."""
    return os.environ.get("PYSPEC_ISA") or None


def num_threads() -> int | None:
    """`PYSPEC_NUM_THREADS`: threads of the CPU kernels; default: the cores this process may use."""
    value = os.environ.get("PYSPEC_NUM_THREADS")
    if not value:
        return None
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"PYSPEC_NUM_THREADS: value must be a positive integer, got {value!r}")
    return int(value)


def cache_dir() -> Path:
    """`PYSPEC_CACHE`: folder for fetched models and measured cost tables; default `~/.cache/pyspec`."""
    value = os.environ.get("PYSPEC_CACHE")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "pyspec"


def disable_extensions() -> bool:
    """`PYSPEC_SPEC_ONLY=1`: ignore compiled extensions and run every op as its specification."""
    return os.environ.get("PYSPEC_SPEC_ONLY") == "1"
