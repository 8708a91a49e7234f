# SPDX-License-Identifier: Apache-2.0
"""Steps of an engine that need no planning, since no draft is due or the one that is asked has nothing to say, and their accounts.

Behind a step of the model all that is Python is out of the CPU's caches: planning takes some percent of a small model's step. So
what was planned last holds for a while. `rest`: no draft will be asked for so many steps yet. `listening`: all requests ask one draft
of the host, whose calls take next to nothing, and a step is planned only if it has something to say. Both are paid for afterwards.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from . import request_plan as rules
from .online import DraftCost, LinearCost, StepCost
from .prices import Prices
from .request_plan import RequestPlan, Worth


class QuietSteps(Prices):
    """What planner.py does not plan, and what steps cost requests and brought them."""

    def __init__(self, cost: StepCost) -> None:
        super().__init__(cost)
        self._handling = LinearCost(5e-5, 5e-5, weight=0.1)  # seconds by requests that were asked for
        self._asked, self._handled = 0, 0.0
        self._funds: dict[str, float] = {}
        self._average: dict[str, Worth] = {}  # of all requests
        self._plans: list[RequestPlan] = []  # of the last planned step
        self._resting, self._rested = 0, 0  # steps that need no planning: still to come, and since that step
        # The draft that is asked without planning, for how many steps still; in how many it had nothing to say, and their seconds.
        self._listened, self._listening, self._heard, self._heard_seconds = "", 0, 0, 0.0
        self._wanted: dict[str, int] = {}  # requests that a draft of this step was asked for
        self._patience = 0  # steps until a draft that was not is due

    def rest(self, plans: Sequence[RequestPlan]) -> bool:
        """Whether there is nothing to plan in this step: no draft will be asked yet, so a plain step needs nothing of begin to finish."""
        if self._resting > 0 and self._same(plans):
            self._resting -= 1
            self._rested += 1
            return True
        self._resting = 0
        return False

    def listening(self, plans: Sequence[RequestPlan]) -> str:
        """The draft that all these requests ask in this step without planning, or "". If it has nothing to say: heard; else begin, drafted."""
        if self._listening > 0 and self._same(plans):
            self._listening -= 1
            return self._listened
        self._listening = 0
        return ""

    def heard(self, seconds: float) -> None:
        """The draft that is listened to had nothing to say, which took so long: a plain step."""
        self._heard += 1
        self._heard_seconds += seconds

    def nothing(self, plans: Sequence[RequestPlan], drafts: Sequence[str]) -> None:
        """In place of observe and finish: no node is verified in the planned step. drafts: whose proposals there were."""
        for plan, draft in zip(plans, drafts, strict=True):
            if draft:
                self.calibration(plan, draft).fade()
            self._account(plan, 0)
        if not self._asked:
            return
        self._handling.observe(self._asked, self._handled)
        ((draft, count), *others) = self._wanted.items()
        if not others and count == len(plans) and not self.drafts[draft].levels:
            tokens = self._call_tokens(self.drafts[draft], count)
            if all(plan.allowance > rules.LISTEN * tokens for plan in plans):
                self._listened, self._listening = draft, min(rules.LISTEN, self._patience)

    def _same(self, plans: Sequence[RequestPlan]) -> bool:
        """Whether these are the requests of the last planned step."""
        return len(plans) == len(self._plans) and all(map(operator.is_, plans, self._plans))

    def _settle(self) -> None:
        """Account for the steps since the last planned one."""
        if self._rested:
            for plan in self._plans:
                plan.rest(self._rested)
        if count := self._heard:
            draft, requests, each = self._listened, len(self._plans), self._heard_seconds / self._heard
            tokens = self.rate * each / requests
            for _ in range(count):
                self.drafts[draft].observe(requests, 0, each)
                self._handling.observe(requests, 1e-6)
            for plan in self._plans:
                plan.rest(count)
                plan.asked, plan.charge, plan.expected = {draft: tokens}, 0.0, 0.0
                plan.allowance -= count * tokens
                self.calibration(plan, draft).fade(count)
                for _ in range(count):
                    self._worth(plan, draft).asked()
                    self._account(plan, 0)
        self._rested, self._heard, self._heard_seconds = 0, 0, 0.0

    def _worth(self, plan: RequestPlan, draft: str) -> Worth:
        """What asking a draft has brought a request; a new one starts from what it brought others."""
        if draft not in plan.worth:
            average = self._average.setdefault(draft, Worth())
            known = average.calls >= rules.MEMORY  # else too little to go by
            plan.worth[draft] = Worth(average.benefit, rules.TRIALS) if known else Worth()
        return plan.worth[draft]

    def _call_tokens(self, cost: DraftCost, requests: int) -> float:
        """Tokens of time, for each of the requests, that calling a draft takes, with what handling a first proposal takes."""
        seconds = cost.seconds(requests) + (0.0 if self._asked else self._handling(requests))
        return self.rate * seconds / requests

    def _account(self, plan: RequestPlan, accepted: int) -> None:
        """What a step cost a request and brought it."""
        benefit = accepted - plan.charge
        plan.allowance = min(rules.LARGEST, plan.allowance + benefit)
        for name, cost in plan.asked.items():
            plan.worth[name].observe(plan.expected - plan.charge, benefit, cost)
            self._average[name].observe(plan.expected - plan.charge, benefit, cost)
            self._funds[name] += benefit - cost
        seconds = 1.0 + plan.charge + sum(plan.asked.values())
        decay = 1 - 1 / (64 * max(1, self._batch))
        self._tokens = decay * self._tokens + 1 + accepted
        self._time = decay * self._time + seconds
