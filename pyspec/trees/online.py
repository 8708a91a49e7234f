# SPDX-License-Identifier: Apache-2.0
"""Costs that are corrected while the engine runs: what a step, its verification and a draft take now.

A shared machine has slow moments. None may change a choice for long, so every observation is clipped to a band around what was
expected before it counts, and what slows all steps alike is kept apart (`StepCost` drift) from what a number of nodes costs more.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .cost import CostTable

BAND = 1.5  # an observation counts as at most this many times more, or less, than was expected
FIRST_BAND = 2.0  # for the first pairs of steps: a table that was measured in a bad moment is corrected soon
BUCKETS = 12  # of nodes: 1, 2, 3-4, 5-8, ..., over 1024


class LinearCost:
    """seconds = base + slope x amount: least squares over about the last `memory` observations, both at least 0.

    The first values count as two observations, at amounts 1 and 9, that are never forgotten: without them a
    slope could not be told while the amount stays the same. The first `free` observations are not clipped.
    """

    def __init__(
        self, base: float, slope: float = 0.0, *, weight: float = 2.0, memory: float = 64.0, free: int = 4
    ) -> None:
        if not (math.isfinite(base) and math.isfinite(slope) and base >= 0 and slope >= 0):
            raise ValueError(f"LinearCost: base, slope must be finite and >= 0, got {base:.3g}, {slope:.3g}")
        self.base, self.slope = base, slope
        self._first, self._weight, self._memory, self._free = (base, slope), weight, memory, free
        self._sums: tuple[float, ...] = (0.0,) * 5  # 1, x, y, xx, xy

    def __call__(self, amount: float) -> float:
        return self.base + self.slope * amount

    def observe(self, amount: float, seconds: float) -> None:
        """One measured time; values that are not finite and positive are not counted."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        if self._free:
            self._free -= 1
        else:
            expected = self(amount)
            seconds = min(max(seconds, expected / BAND), expected * BAND)
        keep, sums = 1 - 1 / self._memory, self._sums
        n, x1, y1 = keep * sums[0] + 1.0, keep * sums[1] + amount, keep * sums[2] + seconds
        xx, xy = keep * sums[3] + amount * amount, keep * sums[4] + amount * seconds
        self._sums = n, x1, y1, xx, xy
        weight, (first, slope) = self._weight, self._first
        one, nine = weight * (first + slope), weight * (first + 9.0 * slope)
        n, x1, y1 = n + 2.0 * weight, x1 + 10.0 * weight, y1 + one + nine
        xx, xy = xx + 82.0 * weight, xy + one + 9.0 * nine
        self.slope = max(0.0, (n * xy - x1 * y1) / (n * xx - x1 * x1))
        self.base = (y1 - self.slope * x1) / n
        if self.base < 0:
            self.base, self.slope = 0.0, xy / xx


class DraftCost:
    """Seconds of a call of a draft: by requests for structures of the host; for a model, by its levels, and by the entries of the text
    that it had to catch up with first. Up to STEADY entries a request belong to every call."""

    STEADY = 32

    def __init__(self) -> None:
        self._by_requests = LinearCost(1e-4, 1e-5, weight=0.01)
        self._by_levels = LinearCost(1e-4, 1e-4, weight=0.01)
        self.levels, self.entry_seconds = 0.0, 0.0
        self.calls = 0

    def seconds(self, requests: int) -> float:
        """Of a call for that many requests that have nothing to catch up with."""
        return self._by_levels(self.levels) if self.levels else self._by_requests(requests)

    def following(self, entries: int) -> float:
        """Seconds more for a request that is so many entries behind."""
        return self.entry_seconds * entries if entries > self.STEADY else 0.0

    @property
    def level_seconds(self) -> float:
        """Of one more level; 0 for a draft without levels."""
        return self._by_levels.slope if self.levels else 0.0

    def observe(self, requests: int, levels: int, seconds: float, entries: int = 0) -> None:
        """One call: how many requests, forwards of a draft model (0: none was run), how long, and entries that were behind."""
        self.calls += 1
        if not levels:
            if not self.levels:
                self._by_requests.observe(requests, seconds)
            return
        if entries > self.STEADY * requests:
            found = max(0.0, seconds - self._by_levels(levels)) / entries
            known = self.entry_seconds or found
            self.entry_seconds = known + (min(found, BAND * known) - known) / 4
        else:
            self._by_levels.observe(levels, seconds)
        self.levels = levels if not self.levels else self.levels + (levels - self.levels) / 16


class StepCost:
    """The table of CostTable, corrected by the steps that are run: seconds x drift x bucket of nodes.

    drift, common to all choices, moves by 1/16 of an observed difference. Buckets learn from two steps of different buckets that
    follow each other: what made both slow cancels out. verify[kind] are seconds by rows of logits for a kind of sampling.
    observed: how many steps it has seen.
    """

    def __init__(self, table: CostTable, verify: dict[str, LinearCost] | None = None) -> None:
        self.table = table
        self.verify = {} if verify is None else verify
        self.observed = 0
        self._drift = 0.0
        self._buckets, self._pairs = [0.0] * BUCKETS, [0] * BUCKETS
        self._curves: dict[tuple[int, int, int], NDArray[np.float64]] = {}
        self._last: tuple[int, float] | None = None  # bucket and logarithm of seconds over the table's

    @property
    def drift(self) -> float:
        """How many times the table's seconds steps take lately."""
        return math.exp(self._drift)

    def verify_seconds(self, kind: str, rows: float) -> float:
        """Of the verification of `rows` rows; 0 for a kind that was neither measured nor seen."""
        cost = self.verify.get(kind)
        return 0.0 if cost is None else cost(rows)

    def seconds(self, nodes: int, context: float, batch: int) -> float:
        """Of the model for that many nodes of `batch` requests."""
        known = self._table(nodes, context, batch).item(nodes - 1)
        return known * math.exp(self._drift + self._buckets[_bucket(nodes)])

    def curve(self, first: int, last: int, context: float, batch: int) -> NDArray[np.float64]:
        """float64 [last - first + 1]: seconds of the model for first, ..., last nodes of `batch` requests; never falling."""
        table = self._table(last, context, batch)[first - 1 : last]
        factors = np.exp(self._drift + np.array(self._buckets))
        return np.maximum.accumulate(table * factors[BUCKET_OF[first - 1 : last]])

    def _table(self, nodes: int, context: float, batch: int) -> NDArray[np.float64]:
        """The table's curve for at least that many nodes; contexts in steps of 64, since steps ask for it several times."""
        key = (1 << (nodes - 1).bit_length(), int(context) >> 6, batch)
        if key not in self._curves:
            if len(self._curves) >= 256:
                self._curves.clear()
            self._curves[key] = self.table.curve(key[0], 64 * key[1], batch)
        return self._curves[key]

    def observe(self, nodes: int, context: float, batch: int, seconds: float) -> None:
        """The measured time of the model for one step."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        self.observed += 1
        bucket = _bucket(nodes)
        slower = math.log(seconds / self._table(nodes, context, batch).item(nodes - 1))
        if self._last is not None and self._last[0] != bucket:
            other, slower_then = self._last
            pair = (slower - self._buckets[bucket]) - (slower_then - self._buckets[other])
            for which, sign in ((bucket, 0.5), (other, -0.5)):
                self._pairs[which] += 1
                band = BAND if self._pairs[which] > 8 else FIRST_BAND
                self._buckets[which] += sign * _clip(pair, band) / min(self._pairs[which] + 1, 24)
        self._last = bucket, slower
        self._drift += _clip(slower - self._buckets[bucket] - self._drift) / 16

    def observe_verify(self, kind: str, rows: int, seconds: float) -> None:
        """The measured time of the verification of one step whose requests are all of one kind."""
        if kind not in self.verify:
            self.verify[kind] = LinearCost(seconds / 2, seconds / (2 * rows))
        self.verify[kind].observe(rows, seconds)


def _clip(difference: float, band: float = BAND) -> float:
    return min(max(difference, -math.log(band)), math.log(band))


def _bucket(nodes: int) -> int:
    return min((nodes - 1).bit_length(), BUCKETS - 1)


BUCKET_OF = np.array([_bucket(nodes) for nodes in range(1, 1 << 16)])
