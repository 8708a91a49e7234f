# SPDX-License-Identifier: Apache-2.0
"""Whether to ask a draft, and how many of its nodes to verify: most tokens a second, and never a bet that cannot be afforded.

Time is counted in tokens: a second is worth the tokens that plain decoding of the same requests emits in it (`rate`). A step that
verifies n nodes more than the roots, by a draft that took d seconds, is

    benefit = accepted nodes - rate x (seconds(n) - seconds(0) + d)

tokens ahead of plain decoding. Three rules:

1. Size. Nodes join in order of estimated acceptance over all requests; the number of them maximises
   sum of estimates - speed-up x rate x (seconds(n) - seconds(0)), where speed-up is what was reached lately: the time of a step is
   worth what it would bring elsewhere, which gives the highest long-run rate and not merely the best single step.
   A request whose drafts are not verified at all gets a few nodes now and then: so seldom that they cost at most PROBE tokens a step.
2. Asking. A draft is asked if its benefit, averaged over its last calls, is above its cost, or if its last call paid; if neither,
   now and then: so seldom that it costs at most PROBE tokens a step.
3. Allowance. A request owns some tokens of time: ALLOWANCE and the price of a node at first, CREDIT more each step, and what its steps win, up to LARGEST.
   A call or a tree whose cost is not covered is not made; a tree is cut to what is covered. Whatever acceptance turns out to be, a
   request so falls behind plain decoding by at most that and CREDIT x steps tokens, as far as the costs are right.

A draft's model that is behind a text (it has not seen the prompt, or was not asked for long) must catch up first. That is not a request's
bet but the engine's: a fund for each draft pays it, FUND tokens at first, CREDIT with every step and request, and what the draft wins.
Costs are known only of what is done: where every step has a tree, a plain one is made now and then, for at most PROBE tokens a step.
Steps that need no planning are in quiet_steps.py; estimates come from acceptance.py, costs from online.py and prices.py, the
numbers from request_plan.py.
"""

from __future__ import annotations

import math
import operator
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import request_plan as rules
from .acceptance import falling
from .online import DraftCost, StepCost
from .policy import PRUNABLE
from .quiet_steps import QuietSteps
from .request_plan import Choice, RequestPlan

if TYPE_CHECKING:
    from pyspec.drafts.base import Proposal


class Planner(QuietSteps):
    """Plans the steps of one engine. In each step that is not quiet: begin, (ask, drafted) per draft, choose; after it observe and finish,
    or nothing instead of both if no node is verified; finish_plain after a quiet step."""

    def __init__(self, cost: StepCost, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(cost)
        self._clock = clock  # times the handling of proposals: from begin to choose, and observe
        self._called, self._began = 0.0, 0.0
        self._since_plain, self._baseline = 0, False
        self._unpaired = False  # whether the last step whose cost was noted had trees

    def begin(self, plans: Sequence[RequestPlan], contexts: Sequence[int]) -> None:
        """A step of decoding requests with these committed lengths (at least one)."""
        if not plans or len(contexts) != len(plans):
            raise ValueError(f"Planner.begin: contexts must be {len(plans)} >= 1 values, got {len(contexts)}")
        self._settle()
        self._began, self._asked, self._called, self._handled = self._clock(), 0, 0.0, 0.0
        self._wanted, self._patience = {}, rules.LISTEN
        self._batch, self._context = len(plans), sum(contexts) / len(contexts)
        self._kinds = {}
        for plan in plans:
            self._kinds[plan.kind] = self._kinds.get(plan.kind, 0) + 1
        self._price()
        self._baseline = self._since_plain >= max(rules.BASELINE, (self.speed_up - 1) / rules.PROBE)
        self._plans, self._resting, self._listening = list(plans), rules.LONGEST_REST, 0
        for plan, context in zip(plans, contexts, strict=True):
            plan.asked, plan.charge, plan.expected, plan.context = {}, 0.0, 0.0, context
            plan.rest(1)
            if not plan.begun:  # where a node is dear, one must be affordable
                plan.begun, plan.allowance = True, plan.allowance + self._extra_tokens(1)[1]
        for draft, fund in self._funds.items():
            self._funds[draft] = min(rules.LARGEST_FUND, fund + rules.CREDIT * len(plans))

    def ask(
        self, draft: str, plans: Sequence[RequestPlan], gains: Sequence[float] | None = None
    ) -> list[bool]:
        """Which requests to call a draft for. gains: accepted tokens that other drafts already promise each of them."""
        cost = self.drafts.setdefault(draft, DraftCost())
        if self._baseline:
            self._resting = self._patience = 0
            return [False] * len(plans)
        tokens = self._call_tokens(cost, len(plans))
        node = self._extra_tokens(1)[1]  # without one node to verify, why ask
        wanted = []
        for i, plan in enumerate(plans):
            worth = self._worth(plan, draft)
            already = gains[i] if gains is not None else 0.0
            yes = worth.asks(tokens, already)
            covered = self._behind(cost, plan, draft) <= self._funds.setdefault(draft, rules.FUND)
            wanted.append(yes and plan.allowance >= tokens + node and covered)
            if wanted[-1]:
                self._resting = 0
            else:
                patience = 0.0 if yes else tokens / rules.PROBE - worth.waited
                patience = max(patience, (tokens + node - plan.allowance) / rules.CREDIT)
                self._resting = min(self._resting, int(patience))
                self._patience = min(self._patience, int(patience))
        return wanted

    def drafted(self, draft: str, plans: Sequence[RequestPlan], levels: int, seconds: float) -> None:
        """A draft was called for these requests: forwards of its model (0: it has none), and how long it took."""
        cost = self.drafts.setdefault(draft, DraftCost())
        entries = sum(plan.context - plan.followed.get(draft, 0) for plan in plans) if levels else 0
        cost.observe(len(plans), levels, seconds, entries)
        tokens = self._call_tokens(cost, max(1, len(plans)))
        self._asked, self._called = max(self._asked, len(plans)), self._called + seconds
        self._wanted[draft], self._resting = len(plans), 0
        for plan in plans:
            plan.asked[draft] = tokens
            plan.allowance -= tokens
            self._worth(plan, draft).asked()
            self._funds[draft] = self._funds.get(draft, rules.FUND) - self._behind(cost, plan, draft)
            plan.followed[draft] = plan.context

    def _behind(self, cost: DraftCost, plan: RequestPlan, draft: str) -> float:
        """Tokens of time that a draft's model takes to catch up with a request's text."""
        return self.rate * cost.following(plan.context - plan.followed.get(draft, 0))

    def choose(
        self, plans: Sequence[RequestPlan], drafts: Sequence[str], proposals: Sequence[Proposal]
    ) -> list[Choice]:
        """Sizes of the proposals' prefixes to verify, for all requests of the step together.

        drafts: whose proposal it is, "" for nobody's (a root alone). Proposals are in order of probability, parents first; trees
        drawn with fresh randomness are verified whole (leaving out what was drawn would be biased): see `budget`.
        """
        if all(len(proposal.tree) == 1 for proposal in proposals):
            self._handled = self._clock() - self._began - self._called
            return [
                Choice(1, rules.reason(1, draft, proposal.tree, 0, self._baseline))
                for draft, proposal in zip(drafts, proposals, strict=True)
            ]
        nodes, caps, fixed = [], [], 0  # (rank, request, gain) of every node that may be verified
        for i, (plan, draft, proposal) in enumerate(zip(plans, drafts, proposals, strict=True)):
            cap, whole = len(proposal.tree) - 1, proposal.tree.drawn not in PRUNABLE
            cap = cap if whole else self._covered(plan, cap)
            caps.append(cap)
            if cap > 0:
                sized = whole or (
                    draft in self.drafts and self.drafts[draft].levels > 0
                )  # before it is drafted
                estimate = self.estimate(plan, draft, proposal, None if sized else cap + 1)[1:]
                if sized:
                    self.profile(draft).observe(estimate)
                # The order of the tree is kept even where estimates say otherwise: a child is never before its parent.
                gains = estimate if whole else falling(estimate[:cap])
                nodes += [(-math.inf if whole else -gain, i, gain) for gain in gains]
                fixed += cap if whole else 0
        sizes, probes = [1] * len(plans), set[int]()
        if nodes:
            nodes.sort(key=operator.itemgetter(0))  # stable
            best = self._best([gain for _, _, gain in nodes], fixed)
            expected = [0.0] * len(plans)
            for _, i, gain in nodes[:best]:
                sizes[i] += 1
                expected[i] += gain
            extra = self._extra_tokens(len(nodes))
            share = extra[best] / best if best else 0.0
            for plan, size, accepted in zip(plans, sizes, expected, strict=True):
                plan.charge, plan.expected = share * (size - 1), accepted
            probes = self._probe(plans, sizes, caps, extra)
        self._handled = self._clock() - self._began - self._called
        choices = []
        for i, (draft, proposal) in enumerate(zip(drafts, proposals, strict=True)):
            size = sizes[i]
            why = rules.reason(size, draft, proposal.tree, caps[i], self._baseline)
            choices.append(Choice(size, rules.TRIED if i in probes else why))
        return choices

    def _probe(
        self,
        plans: Sequence[RequestPlan],
        sizes: list[int],
        caps: Sequence[int],
        extra: Sequence[float],
    ) -> set[int]:
        """Give a few nodes to requests that waited long enough for them; which these are."""
        probes = set()
        for i, plan in enumerate(plans):
            if sizes[i] == 1 and caps[i] > 0:
                most = min(caps[i], rules.PROBE_NODES)
                saved = plan.unverified * rules.PROBE
                count = bisect_right(extra, saved, hi=most + 1) - 1
                if count > 0:
                    sizes[i] += count
                    plan.charge = extra[count]
                    probes.add(i)
            if sizes[i] > 1:
                plan.unverified = 0
        return probes

    def observe(self, plan: RequestPlan, draft: str, proposal: Proposal, path: Sequence[int]) -> None:
        """One request's verified proposal (already cut to its size) and the accepted path, the root first."""
        if draft:
            began = self._clock()
            self.learn(plan, draft, proposal, path)
            self._handled += self._clock() - began
        self._account(plan, len(path) - 1)

    def finish(
        self, plans: Sequence[RequestPlan], nodes: int, prompt_tokens: int, model: float, verify: float
    ) -> None:
        """The measured seconds of the step that was planned: the model over `nodes` nodes in all, and the verification."""
        if self._asked:
            self._handling.observe(self._asked, self._handled)
        self._since_plain = 0 if nodes == self._batch else self._since_plain + 1
        if prompt_tokens:
            return
        self._unpaired = nodes > self._batch
        self.cost.observe(nodes, self._context, self._batch, model)
        if len(self._kinds) == 1:
            self.cost.observe_verify(plans[0].kind, nodes, verify)

    def finish_plain(self, nodes: int, prompt_tokens: int, model: float) -> None:
        """Likewise, of a step that was not. Those that nobody asks a draft in are not looked at, but the first behind a tree."""
        self._since_plain = 0
        if (self._unpaired or not self._rested) and nodes == self._batch and not prompt_tokens:
            self._unpaired = False
            self.cost.observe(nodes, self._context, self._batch, model)
