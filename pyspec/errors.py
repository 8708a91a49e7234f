# SPDX-License-Identifier: Apache-2.0
"""Exceptions of the package. Wrong shapes and values raise ValueError, wrong dtypes TypeError."""

from __future__ import annotations


class UnsupportedError(RuntimeError):
    """No backend can do what was asked exactly; the message lists each backend with its reason."""
