# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of every architecture, made once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = folder / name
            tiny_checkpoint(name, made[name])
        return made[name]

    return get
