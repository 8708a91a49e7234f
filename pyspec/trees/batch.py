# SPDX-License-Identifier: Apache-2.0
"""TreeBatch: the trees of several requests as the flat arrays that the ops take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .token_tree import TokenTree


@dataclass(frozen=True, eq=False)
class TreeBatch:
    """B trees, one after another.

    tokens   int32 [T]      of all trees
    parents  int32 [T]      local to each tree, -1 at its root
    depths   int32 [T]      edges below the tree's root
    cu_t     int32 [B + 1]  tree b holds nodes cu_t[b] .. cu_t[b + 1]
    trees    the trees themselves

    B may be 0. Built in a few microseconds: the engine makes one each step.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    depths: NDArray[np.int32]
    cu_t: NDArray[np.int32]
    trees: tuple[TokenTree, ...]

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> TreeBatch:
        """The batch of `trees`, in order."""
        trees = tuple(trees)
        if len(trees) == 1:
            tree = trees[0]
            cu_t = np.array((0, len(tree.tokens)), dtype=np.int32)
            return cls(tree.tokens, tree.parents, tree.depths, cu_t, trees)
        if not trees:
            empty = np.empty(0, dtype=np.int32)
            return cls(empty, empty, empty, np.zeros(1, dtype=np.int32), trees)
        cu_t = np.zeros(len(trees) + 1, dtype=np.int32)
        np.cumsum([len(tree.tokens) for tree in trees], out=cu_t[1:])
        return cls(
            np.concatenate([tree.tokens for tree in trees]),
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.depths for tree in trees]),
            cu_t,
            trees,
        )

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def max_nodes(self) -> int:
        """Nodes of the largest tree; 0 for an empty batch."""
        return max((len(tree) for tree in self.trees), default=0)

    def ancestor_mask(self) -> NDArray[np.int64]:
        """int64 [T, ceil(max_nodes / 64)]: masks of the trees, bits are local nodes."""
        words = -(-self.max_nodes // 64)
        masks = [tree.ancestor_mask(words) for tree in self.trees]
        return np.concatenate(masks) if masks else np.empty((0, 0), dtype=np.int64)
