# SPDX-License-Identifier: Apache-2.0
"""What speculation keeps of one request: the states of its drafts, and what they failed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyspec.drafts.base import Draft, DraftState, reason_of
from pyspec.drafts.feature_rows import FeatureRows, Features
from pyspec.trees.planner import RequestPlan

MAX_FAILURES = 3


@dataclass(eq=False)
class RequestDraft:
    """A draft can do no harm: what it raises or returns in a wrong form costs the request one step's speculation; after MAX_FAILURES
    failures in a row the draft is switched off for the request.

    mode       how trees are chosen (see LLM); plan: what the planner knows of the request
    text       committed tokens; drafts are told of them when they are asked, so a step that asks none does nothing but note them
    failed     proposals refused so far; off: drafts that were switched off, with the reason
    drafted_by, drafted, reason, failure   of the last step: whose tree, nodes below its root, why it was cut so, what was refused
    """

    mode: str
    plan: RequestPlan
    states: dict[Draft, DraftState] = field(default_factory=dict)
    text: list[int] = field(default_factory=list)
    failed: int = 0
    off: dict[str, str] = field(default_factory=dict)
    drafted_by: str = ""
    drafted: int = 0
    reason: str = ""
    failure: str = ""
    _in_a_row: dict[Draft, int] = field(default_factory=dict)
    _told: dict[Draft, int] = field(default_factory=dict)  # tokens of the text that a draft knows
    _taps: FeatureRows = field(
        default_factory=FeatureRows
    )  # of the tokens that some draft with taps does not know

    def commit(self, tokens: Sequence[int], taps: Features | None) -> None:
        """The next tokens of the text. taps [len(tokens), columns]: of the model at them, for drafts with taps."""
        self.text += tokens
        if taps is not None and any(draft.taps for draft in self.states):
            self._taps.append(taps)

    def tell(self, draft: Draft, taps: tuple[int, ...]) -> None:
        """Tell a draft of what was committed since it last knew; one that raises no longer knows the text, so it is switched off.

        taps: layers whose columns come with committed tokens.
        """
        told, end = self._told.get(draft, 0), len(self.text)
        if told == end:
            return
        self._told[draft] = end
        features = None
        if draft.taps and len(self._taps) >= end - told:
            waiting = self._taps.first(len(self._taps))
            features = _columns(draft, waiting[len(waiting) - (end - told) :], taps)
        try:
            self.states[draft].extend(self.text[told:], features)
        except Exception as error:
            self._switch_off(draft, reason_of(error))
        if features is not None:
            least = min((self._told.get(other, 0) for other in self.states if other.taps), default=end)
            self._taps.drop(len(self._taps) - (end - least))

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


def _columns(draft: Draft, rows: Tensor, taps: tuple[int, ...]) -> Tensor:
    """Those of a draft, of rows [n, len(taps) * hidden]."""
    if draft.taps == taps:
        return rows
    parts = dict(zip(taps, rows.split(rows.size(1) // len(taps), 1), strict=True))
    return torch.cat([parts[layer] for layer in draft.taps], 1)
