# SPDX-License-Identifier: Apache-2.0
"""The command line: `pyspec generate | chat | info | fetch | bench | demo`."""

from __future__ import annotations

from pyspec.cli.app import main

__all__ = ["main"]
