# SPDX-License-Identifier: Apache-2.0
"""What the planner (planner.py) knows of one request, and what it decides for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .acceptance import Calibration
from .token_tree import TokenTree

ALLOWANCE = 0.4  # tokens of time that a request owns at first, beside those that its first node takes
CREDIT, LARGEST = 0.01, 8.0  # tokens
FUND, LARGEST_FUND = (
    32.0,
    256.0,
)  # tokens of time that an engine has for a draft's model to catch up with texts
PROBE = 0.005  # tokens a step that asking without success, and verifying without success, may cost, each
PROBE_NODES = 4
LONGEST_REST = 32  # steps without planning
LISTEN = 8  # steps in which a draft of the host that had nothing to say is asked again without planning
STALE = 8  # observed steps after which the prices of nodes are computed anew
BASELINE = 64  # steps with trees before a plain one is made, at least
TRIALS = 4  # calls of a new draft before its benefit is judged
MARGIN = 0.02  # a tree must promise this much more than its time is worth
HOPE = 1.5  # times their average that a draft's nodes may be worth in one tree
MEMORY = 32  # calls that the benefit of a draft is averaged over

TREE, CHAIN = "a tree pays", "a chain pays"
BASE = "a plain step, to know what it costs"
TRIED = "a few nodes are tried"
EMPTY, UNPAID = "the draft had nothing to say", "no node was worth its time"
UNCOVERED, UNASKED = "no allowance left for a tree", "no draft was worth its time"


class Choice(NamedTuple):
    """Nodes to verify, the root included, and why."""

    size: int
    reason: str


def reason(size: int, draft: str, tree: TokenTree, cap: int, baseline: bool) -> str:
    """Why `size` nodes of a draft's tree are verified, of which the allowance covers `cap` besides the root."""
    if size > 1:
        return CHAIN if tree.prefix(size).is_chain else TREE
    if not draft:
        return BASE if baseline else UNASKED
    if len(tree) == 1:
        return EMPTY
    return UNCOVERED if cap < 1 else UNPAID


@dataclass
class Worth:
    """What asking one draft has brought one request: expected benefit without its cost, averaged over its last calls."""

    benefit: float = 0.0
    calls: int = 0
    paid: bool = False
    waited: int = 0

    def asks(self, tokens: float, already: float) -> bool:
        """Whether a call that takes `tokens` of time is expected to pay, or due; other drafts promise `already` accepted tokens."""
        return (
            self.calls < TRIALS
            or self.benefit - already > tokens
            or (self.paid and already < tokens)
            or self.waited * PROBE >= tokens
        )

    def asked(self) -> None:
        """A call is made."""
        if self.waited > MEMORY:  # old evidence is worth less
            self.calls = min(self.calls, TRIALS)
        self.waited = 0

    def observe(self, expected: float, benefit: float, cost: float) -> None:
        """One call: the benefit that was expected of its tree (which varies less), and the one there was."""
        self.calls += 1
        self.benefit += (expected - self.benefit) / min(self.calls, MEMORY)
        self.paid = benefit > cost


@dataclass(eq=False)
class RequestPlan:
    """What the planner knows of one request. kind: its kind of sampling, the key of StepCost.verify."""

    kind: str = "greedy"
    allowance: float = ALLOWANCE
    begun: bool = False  # whether it has been planned for
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    worth: dict[str, Worth] = field(default_factory=dict)
    context: int = 0  # committed tokens
    # Of them, those that a draft's model has caught up with
    followed: dict[str, int] = field(default_factory=dict)
    # Drafts asked in this step, and their cost in tokens
    asked: dict[str, float] = field(default_factory=dict)
    charge: float = 0.0  # tokens that this step's nodes cost
    unverified: int = 0  # steps since nodes of a draft were verified
    expected: float = 0.0  # accepted nodes that were expected of them

    def rest(self, steps: int) -> None:
        """So many steps go by: the allowance grows, and whatever waits has waited longer."""
        self.allowance = min(LARGEST, self.allowance + CREDIT * steps)
        self.unverified += steps
        for worth in self.worth.values():
            worth.waited += steps
