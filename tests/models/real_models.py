# SPDX-License-Identifier: Apache-2.0
"""Real models from the cache; tests that need one are skipped with the reason where it was never fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyspec import env
from pyspec.models.fetch import SOURCES


def cached_model(name: str) -> Path:
    path = env.cache_dir() / "models" / f"{name}.gguf"
    if not path.is_file() or path.stat().st_size != SOURCES[name].size:
        pytest.skip(f"{path} is not in the cache: run `pyspec fetch {name}`")
    return path
