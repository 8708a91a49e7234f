# SPDX-License-Identifier: Apache-2.0
"""The specification: one file per op with formula, contract, guarantees, reference, cases and cost."""

from __future__ import annotations

from pyspec.spec.add_rms_norm import add_rms_norm
from pyspec.spec.rms_norm import rms_norm
from pyspec.spec.sample import sample
from pyspec.spec.verify_tree import verify_tree

__all__ = ["add_rms_norm", "rms_norm", "sample", "verify_tree"]
