# SPDX-License-Identifier: Apache-2.0
"""Sequoia's dynamic programme: the static shape with most expected accepted nodes for a measured acceptance.

Model: below an accepted node the child of rank r is accepted with probability a[r], whatever the text is; at most one child is, so
the a[r] sum to at most 1. A node is accepted with the product of a along its path, and a shape's value is the sum over its nodes,
the root not counted. With best(n, d) the largest value of a subtree of n nodes whose root lies at depth d, its root counted as 1,

    best(n, d) = 1 + rest(n - 1, d, 0)
    rest(m, d, r) = max over s in 1 .. m of a[d][r] best(s, d + 1) + rest(m - s, d, r + 1);  0 for m = 0

The r-th child can only be there if the ones before it are: ranks are the draft's order, so no rank is skipped. Acceptance may also
differ by depth. Source: arXiv 2402.12374, section 4; extended by depth and by the draft's seconds per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .shapes import Shape, shape_children, shape_depths, shape_of_parents
from .token_tree import MAX_NODES

MAX_CHILDREN = 64


class Planned(NamedTuple):
    """A shape and how many draft tokens are expected to be accepted of it."""

    shape: Shape
    accepted: float


def sequoia_shape(
    acceptance: ArrayLike, budget: int, *, max_depth: int = 16, max_children: int = MAX_CHILDREN
) -> Planned:
    """The best shape of at most `budget` nodes (the root counted), `max_depth` levels below it and `max_children` per node.

    acceptance: [ranks], or [depths, ranks] whose last row holds for all deeper levels; values in [0, 1]. Ranks that are not there
    are never used. Ties go to fewer nodes. About budget^2 x ranks x depths operations.
    """
    return _Programme(acceptance, budget, max_depth, max_children).shape(budget)


def fastest_shape(
    acceptance: ArrayLike,
    seconds: Sequence[float] | NDArray[np.float64],
    *,
    level_seconds: float = 0.0,
    max_depth: int = 16,
    max_children: int = MAX_CHILDREN,
) -> Planned:
    """The shape with most expected tokens a second.

    seconds[n - 1] is what a step of n nodes costs, n = 1 .. len(seconds); every level of the shape costs the draft `level_seconds`.
    A root alone where nothing is faster than plain decoding.
    """
    curve = np.asarray(seconds, dtype=np.float64)
    if curve.ndim != 1 or not len(curve) or not (np.isfinite(curve) & (curve > 0)).all():
        raise ValueError("fastest_shape: seconds must be a row of finite positive numbers, got others")
    best, rate = Planned((-1,), 0.0), 1.0 / curve[0]
    for depth in range(1, max_depth + 1):
        programme = _Programme(acceptance, len(curve), depth, max_children)
        rates = programme.values() / (curve + depth * level_seconds)
        size = int(np.argmax(rates)) + 1
        if rates[size - 1] > rate:
            best, rate = programme.shape(size), float(rates[size - 1])
        elif depth > 1:  # one more level brought nothing
            break
    return best


def expected_accepted(shape: Shape, acceptance: ArrayLike) -> float:
    """The value of a shape: expected accepted nodes below the root."""
    table = _table("expected_accepted", acceptance, max(1, max(shape_depths(shape))))
    value, depths = [1.0] * len(shape), shape_depths(shape)
    for node, children in enumerate(shape_children(shape)):
        for rank, child in enumerate(children):
            given = table[depths[node], rank] if rank < table.shape[1] else 0.0
            value[child] = value[node] * float(given)
    return sum(value) - 1.0


class _Programme:
    """Tables of best and of the choices behind it."""

    def __init__(self, acceptance: ArrayLike, budget: int, max_depth: int, max_children: int) -> None:
        if not 1 <= budget <= MAX_NODES:
            raise ValueError(f"sequoia_shape: budget must be in [1, {MAX_NODES}], got {budget}")
        if max_depth < 0 or max_children < 1:
            found = f"{max_depth} and {max_children}"
            raise ValueError(f"sequoia_shape: max_depth >= 0, max_children >= 1 must hold, got {found}")
        self._depth = min(max_depth, budget - 1)
        table = _table("sequoia_shape", acceptance, max(1, self._depth))
        self._ranks = min(table.shape[1], max_children)
        # best[d][n]: n = 0 is no subtree at all. At the deepest level a subtree is its root: more nodes do not fit.
        best = np.full((self._depth + 1, budget + 1), -np.inf)
        best[:, 1] = 1.0
        self._size = np.zeros((self._depth, self._ranks + 1, budget), dtype=np.int64)  # of the r-th child
        for depth in reversed(range(self._depth)):
            rest = np.full(budget, -np.inf)
            rest[0] = 0.0
            for rank in reversed(range(self._ranks)):
                after, rest = rest, rest.copy()
                for nodes in range(1, budget):
                    sizes = np.arange(1, nodes + 1)
                    below = best[depth + 1, sizes]
                    # Not 0 x -inf: a child of acceptance 0 must fit too.
                    child = np.where(below > 0, table[depth, rank] * np.maximum(below, 0.0), -np.inf)
                    values = child + after[nodes - sizes]
                    rest[nodes] = values.max()
                    self._size[depth, rank, nodes] = 1 + int(values.argmax())
            best[depth, 1:] = 1.0 + rest
        self._best = best[0]

    def values(self) -> NDArray[np.float64]:
        """float64 [budget]: expected tokens of a step with the best shape of at most 1, 2, ... nodes: its value, and one."""
        return np.maximum.accumulate(self._best[1:])

    def shape(self, budget: int) -> Planned:
        """The best shape of at most `budget` nodes."""
        size = 1 + int(np.argmax(self._best[1 : budget + 1]))
        parents = [-1]

        def grow(node: int, nodes: int, depth: int) -> None:
            left, rank = nodes - 1, 0
            while left:
                count = int(self._size[depth, rank, left])
                parents.append(node)
                grow(len(parents) - 1, count, depth + 1)
                left, rank = left - count, rank + 1

        grow(0, size, 0)
        return Planned(shape_of_parents(parents), float(self._best[size]) - 1.0)


def _table(where: str, acceptance: ArrayLike, depths: int) -> NDArray[np.float64]:
    """float64 [depths, ranks] of an acceptance by rank, or by depth and rank."""
    table = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))
    if table.ndim != 2 or not table.size:
        raise ValueError(
            f"{where}: acceptance must be [ranks] or [depths, ranks], got shape {list(np.shape(acceptance))}"
        )
    if not ((table >= 0) & (table <= 1)).all():
        bad = table[~((table >= 0) & (table <= 1))][0]
        raise ValueError(f"{where}: acceptance must be in [0, 1], got {bad:g}")
    return table[np.minimum(np.arange(depths), len(table) - 1)]
