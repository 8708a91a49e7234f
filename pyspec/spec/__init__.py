# SPDX-License-Identifier: Apache-2.0
"""The specification: one file per op with formula, contract, guarantees, reference, cases and cost."""

from __future__ import annotations

from pyspec.spec.add_rms_norm import add_rms_norm
from pyspec.spec.append_kv import append_kv
from pyspec.spec.commit_kv import commit_kv
from pyspec.spec.rms_norm import rms_norm
from pyspec.spec.rope import rope
from pyspec.spec.sample import sample
from pyspec.spec.softcap import softcap
from pyspec.spec.tile_kv import tile_kv
from pyspec.spec.tree_attention import tree_attention
from pyspec.spec.verify_tree import verify_tree

__all__ = [
    "add_rms_norm",
    "append_kv",
    "commit_kv",
    "rms_norm",
    "rope",
    "sample",
    "softcap",
    "tile_kv",
    "tree_attention",
    "verify_tree",
]
