# SPDX-License-Identifier: Apache-2.0
"""Grown hybrid trees: an adaptive shape that stays exact, since every count is decided from tokens drawn above it.

A node with k children has them by the rule `hybrid`: the first drawn from q outside its k - 1 likeliest tokens T, then all of T. The
verifier that traverses the tree takes the first child about as often as target and draft agree, and a token of T about as often
as q says among the rest. So a level of n nodes is given out greedily by score(node) x (0.8 for a first child, 0.2 q_(j) for the
j-th further one), and the children's scores are score(node) x q(x), and x 0.8 q(outside T) for the drawn one. The scores choose
the shape alone; exactness does not depend on them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .policy import Level, Nodes
from .token_tree import MAX_NODES, Drawn, TokenTree

MAX_CHILDREN = 8


@dataclass(frozen=True)
class GrownHybridPolicy:
    """level_nodes[d]: nodes at depth d + 1; agreement: how often a first child is expected to be taken, in [0.5, 1)."""

    level_nodes: tuple[int, ...] = (4, 8, 8)
    agreement: float = 0.8

    def __post_init__(self) -> None:
        if not 0.5 <= self.agreement < 1:
            raise ValueError(f"GrownHybridPolicy: agreement must be in [0.5, 1), got {self.agreement}")
        if not all(1 <= count < MAX_NODES for count in self.level_nodes):
            found = list(self.level_nodes)
            raise ValueError(f"GrownHybridPolicy: level_nodes must be in [1, {MAX_NODES}), got {found}")

    @property
    def drawn(self) -> Drawn:
        return Drawn.HYBRID

    def start(self, root: int, budget: int, min_gain: float = 0.0) -> GrownHybridGrowth:
        return GrownHybridGrowth(self, root, budget, min_gain)


class GrownHybridGrowth(Nodes):
    """A tree of GrownHybridPolicy."""

    def __init__(self, policy: GrownHybridPolicy, root: int, budget: int, min_gain: float) -> None:
        super().__init__(root, budget, min_gain)
        self._policy = policy
        self._counts: list[int] = []

    def _room(self) -> int:
        depth = self.depths[-1]
        wanted = self._policy.level_nodes[depth] if depth < len(self._policy.level_nodes) else 0
        return min(wanted, self.budget - len(self.tokens))

    def level(self) -> Level | None:
        return self._level(min(self._room(), MAX_CHILDREN), per_node=True)

    def counts(self, top_q: NDArray[np.float32]) -> NDArray[np.int32]:
        """int32 [F]: children of each frontier node; nothing of this level has been drawn yet."""
        if top_q.ndim != 2 or len(top_q) != len(self.frontier):
            expected = f"[{len(self.frontier)}, m]"
            raise ValueError(f"Growth.counts: top_q must be {expected}, got {list(top_q.shape)}")
        weights = [math.exp(self.scores[node]) for node in self.frontier]
        self._counts = hybrid_counts(
            weights, top_q[:, :MAX_CHILDREN].tolist(), self._room(), self._policy.agreement
        )
        return np.array(self._counts, dtype=np.int32)

    def add(self, tokens: ArrayLike, parents: ArrayLike, scores: ArrayLike) -> None:
        """Scores are score(node) + log q(x) for every child, the drawn one too."""
        if not self._counts:
            raise ValueError("Growth.add: counts must be asked for before children are drawn")
        counts, self._counts = self._counts, []
        new = self._append(tokens, parents, scores, counts, Drawn.HYBRID)
        likely: dict[int, float] = {}  # q(T) of each parent
        first: dict[int, int] = {}
        for node in new:
            parent = self.parents[node]
            if parent in first:
                likely[parent] += math.exp(self.scores[node] - self.scores[parent])
            else:
                first[parent], likely[parent] = node, 0.0
        for parent, node in first.items():
            outside = max(1.0 - likely[parent], 1e-6)
            self.scores[node] = self.scores[parent] + math.log(self._policy.agreement * outside)
        self.frontier = new

    def finish(self) -> tuple[TokenTree, NDArray[np.float32]]:
        return self._tree(list(range(len(self.tokens))), Drawn.HYBRID, False)


def hybrid_counts(
    weights: Sequence[float], top_q: Sequence[Sequence[float]], total: int, agreement: float
) -> list[int]:
    """Children of each node of a level that `total` children in all are given out to, each to the node where it adds most.

    weights: probabilities of the nodes' paths; top_q[i]: the largest draft probabilities of node i, descending. A node's j-th
    further child adds (1 - agreement) x top_q[i][j - 1], and is there only if some probability is left outside the j likeliest tokens:
    top_q[i][j] > 0. Gains fall within a node, so the greedy choice has the largest sum of gains of all.
    """
    counts = [0] * len(weights)
    heap = [(-weight * agreement, i) for i, weight in enumerate(weights) if weight > 0]
    heapq.heapify(heap)
    while heap and sum(counts) < total:
        _, i = heapq.heappop(heap)
        counts[i] += 1
        j = counts[i]
        if j < len(top_q[i]) and top_q[i][j] > 0:
            heapq.heappush(heap, (-weights[i] * (1 - agreement) * top_q[i][j - 1], i))
    return counts
