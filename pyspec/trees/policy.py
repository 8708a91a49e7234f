# SPDX-License-Identifier: Apache-2.0
"""How a draft model grows a tree level by level: which nodes it looks at next, how many children, when to stop, what is kept.

The loop of a draft, per step (for several requests the levels are computed together, each request with a growth of its own):

    growth = policy.start(root, budget)
    while (level := growth.level()) is not None:
        logits = ...                                   # of the nodes level.nodes: one forward of len(level.nodes) rows
        if policy.drawn is SHARED_NOISE or DETERMINISTIC:
            tokens, parents, scores = build_tree(logits, level.scores, ..., width=level.width, rule=policy.drawn.value)
        else:                                          # drawn with fresh randomness
            counts = growth.counts(top_q)              # children of each frontier node, before any of them is drawn
            tokens, parents, scores = draw_children(...)
        growth.add(tokens, parents, scores)
    tree, path_probability = growth.finish()

`level.per_node` says whether `width` children are wanted of every frontier node (build_tree with each node as a request of its own,
parents then counting the nodes) or of all of them together (build_tree with the frontier as one request). Missing children (token -1,
score -inf) may stand anywhere. Pure host code on numpy; ops and models are the draft's.

Trees of build_tree's two rules may be pruned and re-ranked at will. Children drawn with fresh randomness may not: there every
decision is made from tokens drawn above, and `finish` keeps everything in the order drawn (see pyspec/trees/verifiers.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .shapes import Shape, shape_children
from .token_tree import MAX_NODES, Drawn, TokenTree

NOT_DRAWN = "Growth.counts: children must be drawn with fresh randomness, got a rule of build_tree"
PRUNABLE = (Drawn.DETERMINISTIC, Drawn.SHARED_NOISE)


class Level(NamedTuple):
    """What the draft computes next.

    nodes     int32 [F]: frontier nodes, indices into the order of `add`, the root is 0; F >= 1
    scores    float32 [F]: natural log of the probability of their paths, never rising with depth
    width     children wanted, of each node or of all together, at least 1
    per_node  which of the two
    """

    nodes: NDArray[np.int32]
    scores: NDArray[np.float32]
    width: int
    per_node: bool


class Growth(Protocol):
    """One tree that grows. tokens, parents: of all nodes added so far, the root first."""

    tokens: list[int]
    parents: list[int]

    def level(self) -> Level | None:
        """The next level, or None: the tree is done. The same until `add` is called."""

    def counts(self, top_q: NDArray[np.float32]) -> NDArray[np.int32]:
        """int32 [F]: children to draw below each frontier node; for rules with fresh randomness alone.

        top_q [F, m]: the m largest draft probabilities of each node's law, descending; m >= level().width.
        """

    def add(self, tokens: ArrayLike, parents: ArrayLike, scores: ArrayLike) -> None:
        """The children of the level: int32 [n] ids, int32 [n] indices into level().nodes, float32 [n] scores as build_tree gives.

        Siblings in verification order. Raises ValueError for shapes that differ, parents out of range and NaN.
        """

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node` (as in Level.nodes), both included."""

    def finish(self) -> tuple[TokenTree, NDArray[np.float32]]:
        """The tree and float32 [T]: the draft's probability of each node's path, 1 at the root."""


class TreePolicy(Protocol):
    """A way of growing trees."""

    @property
    def drawn(self) -> Drawn: ...

    def start(self, root: int, budget: int, min_gain: float = 0.0) -> Growth:
        """A tree of at most `budget` nodes (1 to 1024) below the token `root`.

        Growth stops where the next level cannot be expected to add `min_gain` accepted tokens: what one more forward of the
        draft costs, in tokens (its seconds times the tokens per second without it).
        """


class Nodes:
    """The nodes that were added, in order, and the frontier: what every growth has."""

    def __init__(self, root: int, budget: int, min_gain: float) -> None:
        if not 1 <= budget <= MAX_NODES:
            raise ValueError(f"TreePolicy.start: budget must be in [1, {MAX_NODES}], got {budget}")
        self.budget, self.min_gain = budget, min_gain
        self.tokens, self.parents, self.depths = [int(root)], [-1], [0]
        self.scores: list[float] = [0.0]
        self.frontier: list[int] = [0]

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node`."""
        result = []
        while node >= 0:
            result.append(self.tokens[node])
            node = self.parents[node]
        return result[::-1]

    def _level(self, width: int, per_node: bool) -> Level | None:
        """The level of the frontier, unless it can add too little: a child's path is never likelier than its parent's."""
        if not self.frontier or width < 1:
            return None
        scores = np.array([self.scores[node] for node in self.frontier], dtype=np.float32)
        if self.min_gain > 0 and float(np.exp(scores).sum()) < self.min_gain:
            return None
        return Level(np.array(self.frontier, dtype=np.int32), scores, width, per_node)

    def _append(
        self,
        tokens: ArrayLike,
        parents: ArrayLike,
        scores: ArrayLike,
        wanted: Sequence[int] | None = None,
        drawn: Drawn = Drawn.DETERMINISTIC,
    ) -> list[int]:
        """Append the children that are there, at most wanted[i] of the i-th frontier node; returns the new nodes' numbers.

        More are left out, but an error where they were drawn. Nothing is appended if an argument is bad.
        """
        arrays = [np.asarray(values) for values in (tokens, parents, scores)]
        if any(array.shape != arrays[0].shape or array.ndim != 1 for array in arrays):
            shapes = [list(array.shape) for array in arrays]
            raise ValueError(f"Growth.add: tokens, parents, scores must be [n], got {shapes}")
        left = [MAX_NODES] * len(self.frontier) if wanted is None else list(wanted)
        new = []
        for token, place, score in zip(*(array.tolist() for array in arrays), strict=True):
            if score != score:
                raise ValueError(f"Growth.add: scores must not be NaN, got NaN for token {token}")
            if token < 0 or score == -math.inf:
                continue
            if not 0 <= place < len(left):
                raise ValueError(f"Growth.add: parents must be in [0, {len(left)}), got {place}")
            left[place] -= 1
            if left[place] >= 0:
                new.append((token, self.frontier[place], score))
            elif drawn not in PRUNABLE:
                found = f"more of frontier node {place}"
                raise ValueError(f"Growth.add: children drawn must be as many as counts, got {found}")
        size = len(self.tokens)
        for token, parent, score in new:
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
            self.scores.append(min(score, self.scores[parent]))
        return list(range(size, len(self.tokens)))

    def _likeliest(self, count: int) -> list[int]:
        """The `count` best nodes, best first; ties go to the earlier, so a parent comes before its children."""
        return sorted(range(len(self.scores)), key=lambda node: -self.scores[node])[:count]

    def _tree(self, order: list[int], drawn: Drawn, pruned: bool) -> tuple[TokenTree, NDArray[np.float32]]:
        """The tree of the nodes in `order`, parents first."""
        place = {node: i for i, node in enumerate(order)}
        tokens = np.array([self.tokens[node] for node in order], dtype=np.int32)
        links = np.array([-1] + [place[self.parents[node]] for node in order[1:]], dtype=np.int32)
        probability = np.exp(np.array([self.scores[node] for node in order], dtype=np.float32))
        return TokenTree(tokens, links, drawn, pruned), probability


def _check_drawn(name: str, drawn: Drawn, allowed: Sequence[Drawn]) -> None:
    if drawn not in allowed:
        names = "|".join(rule.value for rule in allowed)
        raise ValueError(f"{name}: drawn must be {names}, got {drawn.value}")


@dataclass(frozen=True)
class BestFirstPolicy:
    """The likeliest nodes of all levels: noise-aware growth (shared_noise) and EAGLE-2's (deterministic).

    Every level looks at the at most `beam` best nodes of the one before, and asks for as many children as could still be
    kept; `finish` keeps the `budget` likeliest of all nodes, likeliest first. A node is the product along its path of
    softmax(log q + g), g the noise that the target itself will use at that position, or of q. With beam >= budget - 1 no
    tree of `budget` nodes and depth `max_depth` has a larger sum of probabilities, and levels that cannot change the
    result are never asked for. Sources: docs/structure.md (the shared-noise walk); EAGLE-2, arXiv 2406.16858.
    """

    drawn: Drawn = Drawn.SHARED_NOISE
    max_depth: int = 6
    beam: int = 8

    def __post_init__(self) -> None:
        _check_drawn("BestFirstPolicy", self.drawn, PRUNABLE)
        if not 0 <= self.max_depth < MAX_NODES or not 1 <= self.beam < MAX_NODES:
            found = f"max_depth {self.max_depth}, beam {self.beam}"
            raise ValueError(
                f"BestFirstPolicy: max_depth >= 0, beam >= 1, both < {MAX_NODES} must hold, got {found}"
            )

    def start(self, root: int, budget: int, min_gain: float = 0.0) -> BestFirstGrowth:
        return BestFirstGrowth(self, root, budget, min_gain)


class BestFirstGrowth(Nodes):
    """A tree of BestFirstPolicy."""

    def __init__(self, policy: BestFirstPolicy, root: int, budget: int, min_gain: float) -> None:
        super().__init__(root, budget, min_gain)
        self._policy = policy
        if policy.max_depth == 0:
            self.frontier = []

    def level(self) -> Level | None:
        return self._level(self.budget - 1, per_node=False)

    def counts(self, top_q: NDArray[np.float32]) -> NDArray[np.int32]:
        raise TypeError(NOT_DRAWN)

    def add(self, tokens: ArrayLike, parents: ArrayLike, scores: ArrayLike) -> None:
        new = self._append(tokens, parents, scores)
        if not new or self.depths[new[0]] >= self._policy.max_depth:
            self.frontier = []
            return
        # A node that is not among the best `budget` now never will be, nor will anything below it.
        best = self._likeliest(self.budget)
        self.frontier = [node for node in best if node >= new[0]][: self._policy.beam]
        if len(best) == self.budget:  # a child, which comes later, enters only where it beats the last one
            least = self.scores[best[-1]]
            self.frontier = [node for node in self.frontier if self.scores[node] > least]

    def finish(self) -> tuple[TokenTree, NDArray[np.float32]]:
        order = self._likeliest(self.budget)
        return self._tree(order, self._policy.drawn, len(order) < len(self.tokens))


@dataclass(frozen=True)
class StaticPolicy:
    """A fixed shape: the node of rank r below a parent is the parent's r-th child by the drawing rule. Works with every rule.

    A node that the draft cannot give (its law has no more tokens) is left out with all that is below it. A budget below the
    shape's size keeps the first nodes in level order: a smaller shape, decided before anything is drawn.
    """

    shape: Shape
    drawn: Drawn = Drawn.SHARED_NOISE

    def start(self, root: int, budget: int, min_gain: float = 0.0) -> StaticGrowth:
        return StaticGrowth(self, root, budget, min_gain)


class StaticGrowth(Nodes):
    """A tree of StaticPolicy."""

    def __init__(self, policy: StaticPolicy, root: int, budget: int, min_gain: float) -> None:
        super().__init__(root, budget, min_gain)
        self._drawn = policy.drawn
        self._children = shape_children(policy.shape[:budget])
        self._place = [0]  # the shape's node that each node stands for
        self._set_frontier([0])

    def _set_frontier(self, nodes: list[int]) -> None:
        self.frontier = [node for node in nodes if self._children[self._place[node]]]

    def _wanted(self) -> list[int]:
        return [len(self._children[self._place[node]]) for node in self.frontier]

    def level(self) -> Level | None:
        return self._level(max(self._wanted(), default=0), per_node=True)

    def counts(self, top_q: NDArray[np.float32]) -> NDArray[np.int32]:
        if self._drawn in PRUNABLE:
            raise TypeError(NOT_DRAWN)
        return np.array(self._wanted(), dtype=np.int32)

    def add(self, tokens: ArrayLike, parents: ArrayLike, scores: ArrayLike) -> None:
        new = self._append(tokens, parents, scores, self._wanted(), self._drawn)
        rank = dict.fromkeys(self.frontier, 0)
        for node in new:
            parent = self.parents[node]
            self._place.append(self._children[self._place[parent]][rank[parent]])
            rank[parent] += 1
        self._set_frontier(new)

    def finish(self) -> tuple[TokenTree, NDArray[np.float32]]:
        size = len(self.tokens)
        order = self._likeliest(size) if self._drawn in PRUNABLE else list(range(size))
        return self._tree(order, self._drawn, False)
