# SPDX-License-Identifier: Apache-2.0
"""NEON kernels under qemu-user, one process for every instruction set; skipped with the reason where that cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cross_build
import pytest
from neon_emulator import SETS, Emulator

from pyspec import backends

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that cannot emulate says why in every test."""
    reason = cross_build.why_not() or (backends.native is None and "pyspec._C is not compiled")
    for item in items:
        if reason and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", params=SETS)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """With an instruction set that is forced, on a machine that has all of them."""
    process = Emulator(request.param)
    yield process
    process.close()
