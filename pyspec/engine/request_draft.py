# SPDX-License-Identifier: Apache-2.0
"""What speculation keeps of one request: the states of its drafts, and what they failed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pyspec.drafts.base import Draft, DraftState, reason_of
from pyspec.trees.planner import RequestPlan

MAX_FAILURES = 3


@dataclass(eq=False)
class RequestDraft:
    """A draft can do no harm: what it raises or returns in a wrong form costs the request one step's speculation; after MAX_FAILURES
    failures in a row the draft is switched off for the request.

    mode       how trees are chosen (see LLM); plan: what the planner knows of the request
    failed     proposals refused so far; off: drafts that were switched off, with the reason
    drafted_by, drafted, reason, failure   of the last step: whose tree, nodes below its root, why it was cut so, what was refused
    """

    mode: str
    plan: RequestPlan
    states: dict[Draft, DraftState] = field(default_factory=dict)
    failed: int = 0
    off: dict[str, str] = field(default_factory=dict)
    drafted_by: str = ""
    drafted: int = 0
    reason: str = ""
    failure: str = ""
    _in_a_row: dict[Draft, int] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int], features: Mapping[Draft, Tensor]) -> None:
        """Tell every draft of committed tokens; one that raises no longer knows the text, so it is switched off."""
        for draft, state in list(self.states.items()):
            try:
                state.extend(tokens, features.get(draft))
            except Exception as error:
                self._switch_off(draft, reason_of(error))

    def succeed(self, draft: Draft) -> None:
        """A proposal was taken."""
        self._in_a_row[draft] = 0

    def fail(self, draft: Draft, reason: str) -> None:
        """A proposal was refused."""
        self.failed += 1
        self.failure = f"{draft.name}: {reason}"
        self._in_a_row[draft] = self._in_a_row.get(draft, 0) + 1
        if self._in_a_row[draft] >= MAX_FAILURES:
            self._switch_off(draft, reason)

    def close(self) -> None:
        """Give back what the drafts hold. Safe to call twice."""
        while self.states:
            self._close(*self.states.popitem())

    def _switch_off(self, draft: Draft, reason: str) -> None:
        self.off[draft.name] = reason
        self.failure = f"{draft.name}: {reason}"
        self._close(draft, self.states.pop(draft))

    def _close(self, draft: Draft, state: DraftState) -> None:
        try:
            state.close()
        except Exception as error:
            self.off.setdefault(draft.name, reason_of(error))
