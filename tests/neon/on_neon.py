# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest: every CPU op runs on the emulated NEON kernels instead of this machine's.

`pytest -p on_neon tests/ops` with this folder on the path. `NEON_ISA` names the instruction set.
"""

from __future__ import annotations

import os
import warnings
from functools import partial

import cross_build
import pytest
import torch
from neon_emulator import Emulator

from pyspec import backends

_library = torch.library.Library("pyspec", "IMPL")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take the ops over; leave with the reason where that cannot be."""
    if reason := cross_build.why_not():
        pytest.exit(reason, returncode=0)
    emulator = Emulator(os.environ.get("NEON_ISA"))
    warnings.filterwarnings("ignore", ".*verriding a previously registered kernel", UserWarning)
    for op in emulator.ask("ops"):
        _library.impl(op, partial(emulator.call, op), "CPU")
    native = backends.native
    native.cpu_isa = lambda: emulator.ask("isa")[0]
    native.cpu_features = lambda: " ".join(emulator.ask("features"))
    native.num_threads = lambda: emulator.threads
    native.set_num_threads = emulator.set_threads


def pytest_report_header() -> str:
    return f"CPU ops on emulated {backends.native.cpu_isa()}"
