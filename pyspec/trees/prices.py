# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the planned step cost, in seconds and in tokens, and how large a tree may pay before it is drafted."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from . import request_plan as rules
from .estimates import Estimates
from .online import DraftCost, StepCost
from .request_plan import RequestPlan


class Prices(Estimates):
    """Costs of the step that was begun: see planner.py, which sets its requests."""

    def __init__(self, cost: StepCost) -> None:
        super().__init__()
        self.cost = cost
        self.drafts: dict[str, DraftCost] = {}
        self._context, self._batch = 0.0, 0
        self._plain = 1.0
        self._kinds: dict[str, int] = {}
        self._tokens, self._time = 0.0, 0.0  # decayed sums of the speed-up
        # Of which step the prices are, and how many steps the costs had seen then.
        self._priced: tuple[int, int, dict[str, int]] = (0, -1, {})
        self._priced_at = 0
        self._extra: list[float] = [0.0]

    @property
    def plain_seconds(self) -> float:
        """Of a step of this step's requests without trees: model and verification."""
        return self._plain

    @property
    def rate(self) -> float:
        """Tokens a second of plain decoding of this step's requests."""
        return self._batch / self._plain

    @property
    def speed_up(self) -> float:
        """Tokens a second lately over plain decoding's, at least 1."""
        return max(1.0, self._tokens / self._time) if self._time > 0 else 1.0

    def level_gain(self, draft: str) -> float:
        """What the paths to a frontier must add up to for one more level: `min_gain` of TreePolicy.start.

        The level and a node of it cost time, and of a path that gets there only some go on.
        """
        cost = self.drafts.get(draft)
        if cost is None or not cost.levels:
            return 0.0
        tokens = self.rate * cost.level_seconds / self._batch + self._extra_tokens(1)[1]
        return tokens * self.speed_up / self.goes_on(draft)

    def budget(self, plan: RequestPlan, draft: str, limit: int) -> int:
        """Nodes, the root included, of a tree that will be verified whole: decided before its children are drawn.

        The most expected tokens by what the draft's best nodes were worth on average, what the allowance covers. 1: draw nothing.
        """
        return self._best_size(plan, self.profile(draft).best(limit - 1))

    def reach(self, plan: RequestPlan, draft: str, limit: int) -> int:
        """Nodes, the root included and at least one more, of the largest tree that may pay: more need not be drafted.

        As `budget`, if the draft's nodes turn out to be worth HOPE times what they were on average.
        """
        limit = min(limit, 1 + self._covered(plan, limit - 1))
        hopes = [min(rules.HOPE * gain, 1.0) for gain in self.profile(draft).best(limit - 1)]
        return max(2, self._best_size(plan, hopes))

    def _best_size(self, plan: RequestPlan, gains: Sequence[float]) -> int:
        """Of a tree whose nodes bring `gains`, the root included: the most expected tokens that the allowance covers."""
        return 1 + self._best(gains[: self._covered(plan, len(gains))], 0)

    def _best(self, gains: Sequence[float], least: int) -> int:
        """How many of the nodes that bring `gains` bring most, at least `least` of them."""
        extra, worth = self._extra_tokens(len(gains)), self.speed_up * (1 + rules.MARGIN)
        best, most, value = least, -math.inf, 0.0
        for count in range(len(gains) + 1):
            value += gains[count - 1] if count else 0.0
            if count >= least and value - worth * extra[count] > most:
                best, most = count, value - worth * extra[count]
        return best

    def _covered(self, plan: RequestPlan, most: int) -> int:
        """How many nodes, `most` at most, a request's allowance covers."""
        return max(0, bisect_right(self._extra_tokens(most), plan.allowance, hi=most + 1) - 1)

    def _verify_seconds(self, rows: float) -> float:
        """Of `rows` rows that are spread evenly over the requests."""
        cost = self.cost
        return sum(cost.verify_seconds(k, rows) * count / self._batch for k, count in self._kinds.items())

    def _seconds(self, more: int) -> float:
        """Of a step with that many nodes besides the roots."""
        nodes = self._batch + more
        return self.cost.seconds(nodes, self._context, self._batch) + self._verify_seconds(nodes)

    def _price(self) -> None:
        """Prices of this step; what nodes cost in tokens may be that of an earlier step of like requests, as it changes slowly."""
        self._plain = self._seconds(0)
        key = self._batch, int(self._context) >> 6, self._kinds
        if key == self._priced and self.cost.observed - self._priced_at < min(
            rules.STALE, self.cost.observed >> 5
        ):
            return
        self._priced, self._priced_at = key, self.cost.observed
        self._extra = [0.0]

    def _extra_tokens(self, most: int) -> list[float]:
        """Tokens of time that 0, 1, ..., at least `most` nodes besides the roots add to the step."""
        if most >= len(self._extra):
            size = 1 << most.bit_length()
            curve = self.cost.curve(self._batch, self._batch + size, self._context, self._batch).tolist()
            slope = self._verify_seconds(1.0) - self._verify_seconds(0.0)
            rate, first = self.rate, curve[0]
            self._extra = [rate * (seconds - first + slope * i) for i, seconds in enumerate(curve)]
        return self._extra
