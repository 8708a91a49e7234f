# SPDX-License-Identifier: Apache-2.0
"""Token trees: the tree itself, batches, builders, conversions, exact verifiers and the cost model."""

from __future__ import annotations

from .batch import TreeBatch
from .token_tree import MAX_NODES, Drawn, TokenTree
from .verifiers import VERIFIERS, Verifier, check_verifier

__all__ = ["MAX_NODES", "VERIFIERS", "Drawn", "TokenTree", "TreeBatch", "Verifier", "check_verifier"]
