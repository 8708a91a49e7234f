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
from itertools import accumulate

from numpy.typing import NDArray

from .token_tree import MAX_NODES

MEMORY = 48.0  # trials that an average rests on at most
FAST_DECAY, FAST_PRIOR = 0.75, 2.0  # of the average over the last few observations
DEPTHS, RANKS = 8, 4  # the last class of each holds all deeper ones and all further ones


class Predictions:
    """The nodes of a verified or proposed tree, as calibration sees them: lists of T, the root's entries are not used.

    links        parents, -1 at the root
    conditional  the draft's probability of each node given its parent, in [0, 1]
    cells        class of depth and rank: min(depth - 1, 7) * 4 + min(rank, 3)
    """

    __slots__ = ("cells", "conditional", "links")

    def __init__(self, parents: NDArray | Sequence[int], path_probability: NDArray | Sequence[float]) -> None:
        """parents int [T]; path_probability [T]: the draft's, of the path to each node."""
        links, path = (
            values if isinstance(values, list) else as_list(values) for values in (parents, path_probability)
        )
        size = len(links)
        self.links: list[int] = links
        self.conditional, self.cells = [1.0] * size, [0] * size
        depths, seen = [0] * size, [0] * size
        for node in range(1, size):
            parent = links[node]
            above, depth, rank = path[parent], depths[parent], seen[parent]
            depths[node], seen[parent] = depth + 1, rank + 1
            self.conditional[node] = min(max(path[node] / above, 0.0), 1.0) if above > 0 else 0.0
            self.cells[node] = (depth if depth < DEPTHS else DEPTHS - 1) * RANKS + (
                rank if rank < RANKS else RANKS - 1
            )

    def first(self, count: int) -> Predictions:
        """Those of the first `count` nodes."""
        if count >= len(self.links):
            return self
        part = object.__new__(Predictions)
        part.links, part.conditional, part.cells = (
            self.links[:count], self.conditional[:count], self.cells[:count],
        )  # fmt: skip
        return part


class Counts:
    """Trials and hits by class, in plain Python: a step has few nodes, and calls of numpy for a few numbers take longer.

    All fade together: instead of making old ones smaller, a new one counts `unit` times as much.
    """

    def __init__(self, classes: int, keep: float) -> None:
        self.trials, self.hits = [0.0] * classes, [0.0] * classes
        self.unit, self._keep = 1.0, keep

    def fade(self, steps: int = 1) -> None:
        """What was counted so far weighs `keep` times as much from now on, or that for each of so many steps."""
        self.unit /= self._keep**steps
        if self.unit > 1e100:
            for values in (self.trials, self.hits):
                values[:] = [value / self.unit for value in values]
            self.unit = 1.0

    def mean(self, kind: int, prior: float, said: float) -> float:
        """Hits a trial, with `prior` imaginary trials of which `said` were hits."""
        prior *= self.unit
        return (self.hits[kind] + prior * said) / (self.trials[kind] + prior)

    def add(self, kind: int, trials: float, hits: float, most: float = MEMORY) -> None:
        """Count, and forget so much that the class rests on no more than `most` trials."""
        self.trials[kind] += trials * self.unit
        self.hits[kind] += hits * self.unit
        if self.trials[kind] > most * self.unit:
            share = most * self.unit / self.trials[kind]
            self.trials[kind] *= share
            self.hits[kind] *= share


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
    by_probability: Counts = field(init=False)
    by_cell: Counts = field(init=False)  # its trials are those that were expected to succeed
    lately: Counts = field(init=False)

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
        self.by_probability = Counts(self.buckets, self.decay)
        self.by_cell = Counts(DEPTHS * RANKS, self.decay)
        self.lately = Counts(self.buckets, FAST_DECAY)

    def _bucket(self, conditional: float) -> int:
        return min(int(conditional * self.buckets), self.buckets - 1)

    def _by_probability(self, conditional: float, bucket: int) -> float:
        said = conditional if self.shared is None else self.shared._by_probability(conditional, bucket)
        return self.by_probability.mean(bucket, self.prior, said)

    def _by_cell(self, cell: int) -> float:
        said = 1.0 if self.shared is None else self.shared._by_cell(cell)
        return self.by_cell.mean(cell, self.prior, said)

    def estimate(self, nodes: Predictions) -> list[float]:
        """Acceptance probability of each of T nodes, never above its parent's; 1 at the root."""
        links, estimate = nodes.links, [1.0] * len(nodes.links)
        for node in range(1, len(links)):
            conditional = nodes.conditional[node]
            bucket = self._bucket(conditional)
            slow = self._by_probability(conditional, bucket)
            fast = self.lately.mean(bucket, FAST_PRIOR, slow)
            given = max(slow, fast) * self._by_cell(nodes.cells[node])
            estimate[node] = estimate[links[node]] * min(given, 1.0)
        return estimate

    def fade(self, steps: int = 1) -> None:
        """So many steps in which nothing was verified."""
        self.by_probability.fade(steps)
        self.by_cell.fade(steps)
        if self.shared is not None:
            self.shared.fade(steps)

    def observe(self, nodes: Predictions, accepted: Sequence[int]) -> None:
        """Records one step: the verified nodes (not those cut off before) and the accepted path, the root first."""
        self.by_probability.fade()
        self.by_cell.fade()
        links, on_path = nodes.links, set(accepted)
        if len(links) > 1:
            told = [node for node in range(1, len(links)) if links[node] in on_path]
            classes = [self._bucket(nodes.conditional[node]) for node in told]
            expected = [
                self._by_probability(nodes.conditional[node], bucket)
                for node, bucket in zip(told, classes, strict=True)
            ]
            self.lately.fade()
            for node, bucket, hoped in zip(told, classes, expected, strict=True):
                hit = float(node in on_path)
                self.lately.add(bucket, 1.0, hit)
                self.by_probability.add(bucket, 1.0, hit)
                self.by_cell.add(nodes.cells[node], hoped, hit)
        if self.shared is not None:
            self.shared.observe(nodes, accepted)


class GainProfile:
    """What the best, second best, ... node of a draft's trees is worth on average, for trees whose size must be chosen before them."""

    def __init__(self) -> None:
        self._gains = [0.5 / size for size in range(1, MAX_NODES)]  # until trees of that size were seen
        self._seen = [0] * (MAX_NODES - 1)

    def observe(self, estimate: Sequence[float]) -> None:
        """The estimated acceptance of one tree's nodes, in any order, the root not among them."""
        for i, gain in enumerate(sorted(estimate, reverse=True)):
            self._seen[i] += 1
            self._gains[i] += (gain - self._gains[i]) / min(self._seen[i], 16)

    def best(self, count: int) -> list[float]:
        """The first `count`, never rising."""
        return falling(self._gains[:count])


def falling(values: Sequence[float]) -> list[float]:
    """The least of each value and all before it."""
    return list(accumulate(values, min))


def as_list(values: NDArray | Sequence) -> list:
    """The values as a list of Python's own numbers, which single ones are read from fast."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
