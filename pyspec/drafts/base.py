# SPDX-License-Identifier: Apache-2.0
"""What every draft is: a factory of per-request states that propose token trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyspec.trees import Drawn, TokenTree


@dataclass(frozen=True, eq=False)
class Proposal:
    """A tree, best nodes first, with how likely the draft thinks each node is to be accepted.

    path_probability is float32 [T]: the estimated probability that the target takes the whole path to the
    node, 1 at the root, never increasing with the index (so never above the parent's): `tree.prefix(n)` keeps
    the n likeliest nodes.
    """

    tree: TokenTree
    path_probability: NDArray[np.float32]

    @staticmethod
    def root(token: int) -> Proposal:
        """The proposal of nothing: a root alone."""
        tree = TokenTree.unchecked(
            np.array((token,), dtype=np.int32), np.array((-1,), dtype=np.int32), Drawn.DETERMINISTIC
        )
        return Proposal(tree, np.ones(1, dtype=np.float32))

    def prefix(self, num_nodes: int) -> Proposal:
        """The first, that is the likeliest, `num_nodes` nodes (>= 1)."""
        return Proposal(self.tree.prefix(num_nodes), self.path_probability[:num_nodes])


class DraftState(Protocol):
    """The draft of one request."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends committed tokens: those before the root of the next proposal, each exactly once."""

    def propose(self, root: int, budget: int) -> Proposal:
        """A tree of at most `budget` nodes below `root`, the emitted token that is not committed yet.

        The root alone when the draft has nothing to say. Does not change the state. ValueError for a budget
        outside [1, 1024].
        """


class Draft(Protocol):
    """A way of drafting."""

    def start(self, prompt: Sequence[int]) -> DraftState:
        """The state of a new request whose committed tokens are `prompt`."""
