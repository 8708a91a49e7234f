# SPDX-License-Identifier: Apache-2.0
"""`python -m pyspec` is the command `pyspec`."""

from __future__ import annotations

from pyspec.cli import main

main()
