# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the planned step cost, in seconds and in tokens, and how large a tree may pay before it is drafted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
        node = float(self._extra_seconds(1)[1])
        return (cost.level_seconds + self._batch * node) / self._plain * self.speed_up / self.goes_on(draft)

    def budget(self, plan: RequestPlan, draft: str, limit: int) -> int:
        """Nodes, the root included, of a tree that will be verified whole: decided before its children are drawn.

        The most expected tokens by what the draft's best nodes were worth on average, what the allowance covers. 1: draw nothing.
        """
        return self._best_size(plan, self.profile(draft).best(limit - 1))

    def reach(self, plan: RequestPlan, draft: str, limit: int) -> int:
        """Nodes, the root included and at least one more, of the largest tree that may pay: more need not be drafted.

        As `budget`, if the draft's nodes turn out to be worth HOPE times what they were on average.
        """
        return max(
            2, self._best_size(plan, np.minimum(rules.HOPE * self.profile(draft).best(limit - 1), 1.0))
        )

    def _best_size(self, plan: RequestPlan, gains: NDArray[np.float64]) -> int:
        """Of a tree whose nodes bring `gains`, the root included: the most expected tokens that the allowance covers."""
        extra = self.rate * self._extra_seconds(len(gains))
        value = np.concatenate(([0.0], np.cumsum(gains))) - self.speed_up * (1 + rules.MARGIN) * extra
        value[extra > plan.allowance] = -np.inf
        value[0] = 0.0
        return 1 + int(np.argmax(value))

    def _verify_seconds(self, rows: float) -> float:
        """Of `rows` rows that are spread evenly over the requests."""
        cost = self.cost
        return sum(cost.verify_seconds(k, rows) * count / self._batch for k, count in self._kinds.items())

    def _seconds(self, more: int) -> float:
        """Of a step with that many nodes besides the roots."""
        nodes = self._batch + more
        return self.cost.seconds(nodes, self._context, self._batch) + self._verify_seconds(nodes)

    def _extra_seconds(self, most: int) -> NDArray[np.float64]:
        """float64 [most + 1]: seconds that 0, ..., most nodes besides the roots add to the step."""
        curve = self.cost.curve(self._batch, self._batch + most, self._context, self._batch)
        slope = self._verify_seconds(1.0) - self._verify_seconds(0.0)
        return curve - curve[0] + slope * np.arange(most + 1)
