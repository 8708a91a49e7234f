# SPDX-License-Identifier: Apache-2.0
"""A simulated engine: true costs and acceptance, the planner in its loop, and what fixed choices would have reached.

No clock is read: seconds come from a cost curve, with noise and slow moments where a test asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pyspec.drafts import Proposal
from pyspec.trees import TokenTree
from pyspec.trees.cost import CostTable
from pyspec.trees.online import LinearCost, StepCost
from pyspec.trees.planner import Planner, RequestPlan

CONTEXT = 100


@dataclass
class World:
    """One kind of engine and text.

    seconds     of a step by nodes in all (true; `table` is what was measured at start-up, by default the same)
    truth       truth(step): probability that the target takes a draft token after an accepted one
    said        said(step): what the draft says of it
    length      draft tokens, one below the other
    silent      silent(step): whether the draft has nothing to say
    draft       seconds of a call by requests
    handling    seconds of a step in which a draft was asked, besides the draft's own
    slow        slow(step): how many times slower the machine is
    noise       spread of the logarithm of every measured time
    """

    seconds: Callable[[int], float]
    truth: Callable[[int], float]
    said: Callable[[int], float] = lambda step: 0.7
    length: int = 12
    silent: Callable[[int], bool] = lambda step: False
    draft: Callable[[int], float] = lambda requests: 1e-4
    levels: int = 0
    slow: Callable[[int], float] = lambda step: 1.0
    noise: float = 0.0
    batch: int = 1
    handling: float = 0.0
    table: CostTable | None = None
    seed: int = 0
    rested: int = 0
    heard: int = 0
    sizes: list[int] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        if self.table is None:
            points = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
            self.table = CostTable(points, (0,), (tuple(self.seconds(n) for n in points),))
        self.clock = 0.0
        cost = StepCost(self.table, {"greedy": LinearCost(1e-4, 1e-5)})
        self.planner = Planner(cost, lambda: self.clock)

    def proposal(self, step: int) -> Proposal:
        if self.silent(step):
            return Proposal.root(0)
        probability = self.said(step) ** np.arange(self.length + 1)
        return Proposal(TokenTree.chain([0] * (self.length + 1)), probability.astype(np.float32))

    def accepted(self, step: int, size: int) -> int:
        """Draft tokens that the target takes, of size - 1."""
        hits = self.random.random(size - 1) < self.truth(step)
        return int(np.argmin(np.append(hits, False)))

    def measured(self, seconds: float, step: int) -> float:
        return seconds * self.slow(step) * float(np.exp(self.noise * self.random.standard_normal()))

    def plain(self, step: int) -> float:
        """Seconds of a step that verifies nothing, of which the planner is told."""
        seconds = self.seconds(self.batch)
        self.planner.finish_plain(self.batch, 0, self.measured(seconds, step))
        self.sizes.append(self.batch)
        self.drift.append(self.planner.cost.drift)
        return seconds + 1e-4 + 1e-5 * self.batch

    def run(self, steps: int) -> tuple[float, float]:
        """(tokens, seconds of an undisturbed machine) with the planner."""
        planner, plans = self.planner, [RequestPlan() for _ in range(self.batch)]
        tokens = time = 0.0
        for step in range(steps):
            if planner.rest(plans):
                self.rested += 1
                time += self.plain(step)
                tokens += self.batch
                continue
            if planner.listening(plans):
                time += self.draft(self.batch) + self.handling
                seconds = self.measured(self.draft(self.batch) + self.handling, step)
                if self.silent(step):
                    planner.heard(seconds)
                    self.heard += 1
                    time += self.plain(step)
                    tokens += self.batch
                    continue
                planner.begin(plans, [CONTEXT] * self.batch)
                asked = plans
            else:
                planner.begin(plans, [CONTEXT] * self.batch)
                asked = [plan for plan, yes in zip(plans, planner.ask("d", plans), strict=True) if yes]
                if asked:
                    time += self.draft(len(asked)) + self.handling
                    seconds = self.measured(self.draft(len(asked)), step)
                    self.clock += seconds + self.measured(self.handling, step)
            if asked:
                planner.drafted("d", asked, self.levels, seconds)
            drafts = ["d" if plan in asked else "" for plan in plans]
            proposals = [self.proposal(step) if draft else Proposal.root(0) for draft in drafts]
            choices = planner.choose(plans, drafts, proposals)
            nodes = sum(choice.size for choice in choices)
            if nodes == self.batch:
                planner.nothing(plans, drafts)
                time += self.plain(step)
                tokens += self.batch
                continue
            verify = 1e-4 + 1e-5 * nodes
            time += self.seconds(nodes) + verify
            planner.finish(
                plans, nodes, 0, self.measured(self.seconds(nodes), step), self.measured(verify, step)
            )
            for plan, draft, proposal, choice in zip(plans, drafts, proposals, choices, strict=True):
                count = self.accepted(step, choice.size)
                tokens += 1 + count
                planner.observe(plan, draft, proposal.prefix(choice.size), list(range(count + 1)))
            self.sizes.append(nodes)
            self.drift.append(planner.cost.drift)
        return tokens, time

    def fixed(self, steps: int, size: int) -> float:
        """Expected tokens a second if every request verifies `size` nodes in every step, and drafts for it."""
        nodes = size * self.batch
        time = steps * (
            self.seconds(nodes) + 1e-4 + 1e-5 * nodes + (self.draft(self.batch) if size > 1 else 0.0)
        )
        tokens = sum(1 + sum(self.truth(step) ** d for d in range(1, size)) for step in range(steps))
        return self.batch * tokens / time
