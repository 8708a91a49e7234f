# SPDX-License-Identifier: Apache-2.0
"""Calls of a draft for several requests: what it raises is a failure of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspec.drafts.base import Draft, Failure, Proposal, reason_of
from pyspec.engine.request import Request


def told(draft: Draft, requests: Sequence[Request], taps: tuple[int, ...]) -> list[Request]:
    """Those requests whose text the draft follows, after it was told all of it. taps: of the engine's model."""
    for request in requests:
        if request.draft is not None:
            request.draft.tell(draft, taps)
    return [request for request in requests if request.draft is not None and draft in request.draft.states]


def call_draft(
    draft: Draft, requests: Sequence[Request], budgets: Mapping[Request, int], min_gain: float
) -> list[Proposal | Failure]:
    """What a draft says of requests whose texts it follows, unchecked."""
    roots, limits = [request.root for request in requests], [budgets[request] for request in requests]
    states = [request.draft.states[draft] for request in requests if request.draft is not None]
    try:
        found = list(draft.propose(states, roots, limits, min_gain))
        if len(found) != len(requests):
            raise ValueError(f"propose must give {len(requests)} proposals, got {len(found)}")
    except Exception as error:
        found = [Failure(reason_of(error))] * len(requests)
    return found
