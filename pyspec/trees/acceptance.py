# SPDX-License-Identifier: Apache-2.0
"""What a draft's predictions have been worth: acceptance by predicted probability, depth and rank, learned online.

For a node i below parent a let c = path_probability[i] / path_probability[a], what the draft says of i once a is accepted. Then

    estimate(i) = estimate(a) min(1, P(c) f(depth, rank))

P is the acceptance found among nodes with a like c, f how far nodes of this depth and rank among their siblings did better or
worse than that. Both are learned from nodes whose parent was accepted: what hangs below a rejected node tells nothing of itself.
P is the larger of a slow average and of one over the last few observations: text turns from prose to copying within a step, and who
is too hopeful pays for a few nodes (the planner bounds how much), who is too slow misses the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .token_tree import MAX_NODES

MEMORY = 48.0  # trials that an average rests on at most
FAST_DECAY, FAST_PRIOR = 0.75, 2.0  # of the average over the last few observations
DEPTHS, RANKS = 8, 4  # the last class of each holds all deeper ones and all further ones


@dataclass(frozen=True)
class Predictions:
    """The nodes of a verified or proposed tree, as calibration sees them. Arrays [T]; the root's entries are not used."""

    parents: NDArray[np.int32]
    path_probability: NDArray[np.float32]

    @cached_property
    def conditional(self) -> NDArray[np.float64]:
        """float64 [T]: the draft's probability of each node given its parent, in [0, 1]; 1 at the root."""
        path = self.path_probability.astype(np.float64)
        above = path[self.parents]
        above[0] = path[0] if len(path) else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.clip(np.where(above > 0, path / above, 0.0), 0.0, 1.0)

    @cached_property
    def cells(self) -> NDArray[np.int64]:
        """int64 [T]: class of depth and rank: min(depth - 1, 7) * 4 + min(rank, 3)."""
        depths, seen, cells = [0] * len(self.parents), [0] * len(self.parents), [0] * len(self.parents)
        for node, parent in enumerate(self.parents.tolist()):
            if node:
                depths[node] = depths[parent] + 1
                cells[node] = min(depths[parent], DEPTHS - 1) * RANKS + min(seen[parent], RANKS - 1)
                seen[parent] += 1
        return np.array(cells, dtype=np.int64)


@dataclass
class Calibration:
    """Acceptance of one request's proposals (or of all requests': the `shared` prior of new ones).

    The range [0, 1] of c is split into `buckets`; each holds how many nodes were tried and accepted, with `prior` imaginary
    trials that succeeded as often as `shared`, or the draft itself, says. Counts shrink by `decay` at every step, also when
    nothing was proposed: a draft that failed is believed again a little later.
    """

    buckets: int = 16
    prior: float = 8.0
    decay: float = 0.99
    shared: Calibration | None = None
    tried: NDArray[np.float64] = field(init=False)
    accepted: NDArray[np.float64] = field(init=False)
    expected_in_cell: NDArray[np.float64] = field(init=False)
    accepted_in_cell: NDArray[np.float64] = field(init=False)
    tried_lately: NDArray[np.float64] = field(init=False)
    accepted_lately: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.prior <= 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"Calibration: buckets >= 1, prior > 0, 0 < decay <= 1 must hold, "
                f"got {self.buckets}, {self.prior}, {self.decay}"
            )
        if self.shared is not None and self.shared.buckets != self.buckets:
            raise ValueError(
                f"Calibration: shared must have {self.buckets} buckets, got {self.shared.buckets}"
            )
        # One array, so that forgetting is one operation; the named ones are its parts.
        sizes = (self.buckets, self.buckets, DEPTHS * RANKS, DEPTHS * RANKS)
        self._counts = np.zeros(sum(sizes))
        parts = np.split(self._counts, np.cumsum(sizes)[:-1])
        self.tried, self.accepted, self.expected_in_cell, self.accepted_in_cell = parts
        self.tried_lately, self.accepted_lately = np.zeros((2, self.buckets))

    def _bucket(self, conditional: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.minimum((conditional * self.buckets).astype(np.int64), self.buckets - 1)

    def _by_probability(
        self, conditional: NDArray[np.float64], bucket: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        said = conditional if self.shared is None else self.shared._by_probability(conditional, bucket)
        return (self.accepted[bucket] + self.prior * said) / (self.tried[bucket] + self.prior)

    def _by_cell(self, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        said = 1.0 if self.shared is None else self.shared._by_cell(cells)
        return (self.accepted_in_cell[cells] + self.prior * said) / (
            self.expected_in_cell[cells] + self.prior
        )

    def estimate(self, nodes: Predictions) -> NDArray[np.float64]:
        """float64 [T]: acceptance probability of each node, never above its parent's; 1 at the root."""
        size = len(nodes.parents)
        if size == 1:
            return np.ones(1)
        conditional = nodes.conditional
        bucket = self._bucket(conditional)
        slow = self._by_probability(conditional, bucket)
        fast = (self.accepted_lately[bucket] + FAST_PRIOR * slow) / (self.tried_lately[bucket] + FAST_PRIOR)
        given = np.minimum(np.maximum(slow, fast) * self._by_cell(nodes.cells), 1.0).tolist()
        estimate = [1.0] * size
        for node, parent in enumerate(nodes.parents.tolist()):
            if node:
                estimate[node] = estimate[parent] * given[node]
        return np.array(estimate)

    def observe(self, nodes: Predictions, accepted: Sequence[int]) -> None:
        """Records one step: the verified nodes (not those cut off before) and the accepted path, the root first."""
        self._counts *= self.decay
        if len(nodes.parents) > 1:
            on_path = np.zeros(len(nodes.parents), dtype=bool)
            on_path[list(accepted)] = True
            told = np.flatnonzero(on_path[nodes.parents])  # their parents were accepted
            told = told[told > 0]
            conditional = nodes.conditional[told]
            bucket, cells, hit = self._bucket(conditional), nodes.cells[told], on_path[told]
            expected = self._by_probability(conditional, bucket)
            self.tried_lately *= FAST_DECAY
            self.accepted_lately *= FAST_DECAY
            np.add.at(self.tried_lately, bucket, 1.0)
            np.add.at(self.accepted_lately, bucket, hit)
            np.add.at(self.tried, bucket, 1.0)
            np.add.at(self.accepted, bucket, hit)
            np.add.at(self.expected_in_cell, cells, expected)
            np.add.at(self.accepted_in_cell, cells, hit)
            _forget(self.tried, self.accepted)
            _forget(self.expected_in_cell, self.accepted_in_cell)
        if self.shared is not None:
            self.shared.observe(nodes, accepted)


class GainProfile:
    """What the best, second best, ... node of a draft's trees is worth on average, for trees whose size must be chosen before them."""

    def __init__(self) -> None:
        self._gains = 0.5 / np.arange(1, MAX_NODES)  # until trees of that size were seen
        self._seen = np.zeros(MAX_NODES - 1)

    def observe(self, estimate: NDArray[np.float64]) -> None:
        """The estimated acceptance of one tree's nodes, in any order, the root not among them."""
        ordered = -np.sort(-estimate)
        known, seen = self._gains[: len(ordered)], self._seen[: len(ordered)]
        seen += 1
        known += (ordered - known) / np.minimum(seen, 16)

    def best(self, count: int) -> NDArray[np.float64]:
        """float64 [count]: never rising."""
        return np.minimum.accumulate(self._gains[:count])


def _forget(trials: NDArray[np.float64], hits: NDArray[np.float64]) -> None:
    """Scale counts so that none rests on more than MEMORY trials: long runs would be remembered for too long."""
    scale = np.minimum(1.0, MEMORY / np.maximum(trials, 1.0))
    trials *= scale
    hits *= scale
