# SPDX-License-Identifier: Apache-2.0
"""What the drafts of one engine promise and what that is worth: a calibration for each request and draft, and what all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .acceptance import Calibration, GainProfile
from .request_plan import RequestPlan

if TYPE_CHECKING:
    from pyspec.drafts.base import Proposal


class Estimates:
    """Acceptance of proposals by the name of the draft, or of the drafts merged."""

    def __init__(self) -> None:
        self._shared: dict[str, Calibration] = {}
        self._profiles: dict[str, GainProfile] = {}
        self._went_on: dict[str, tuple[float, float]] = {}  # paths at a node with children, and that went on

    def calibration(self, plan: RequestPlan, draft: str) -> Calibration:
        """What a draft's probabilities are worth to a request; a new one starts from what they were worth to others."""
        if draft not in plan.calibrations:
            shared = self._shared.setdefault(draft, Calibration(prior=4.0, decay=0.999))
            plan.calibrations[draft] = Calibration(shared=shared)
        return plan.calibrations[draft]

    def estimate(
        self, plan: RequestPlan, draft: str, proposal: Proposal, most: int | None = None
    ) -> list[float]:
        """Acceptance probability of each node, the root's is 1; of the first `most` nodes."""
        predictions = proposal.predictions if most is None else proposal.predictions.first(most)
        return self.calibration(plan, draft).estimate(predictions)

    def learn(self, plan: RequestPlan, draft: str, proposal: Proposal, path: Sequence[int]) -> None:
        """One request's verified proposal and its accepted path, the root first."""
        predictions = proposal.predictions
        self.calibration(plan, draft).observe(predictions, path)
        tried, accepted = self._went_on.get(draft, (0.0, 0.0))
        links = predictions.links
        tried = 0.98 * tried + sum(node in links for node in path)
        self._went_on[draft] = tried, 0.98 * accepted + len(path) - 1

    def goes_on(self, draft: str) -> float:
        """The probability, in (0, 1), that a path which reached a node with children takes one of them."""
        tried, accepted = self._went_on.get(draft, (0.0, 0.0))
        return (accepted + 1.0) / (tried + 2.0)

    def profile(self, draft: str) -> GainProfile:
        """What the nodes of a draft's trees are worth on average."""
        return self._profiles.setdefault(draft, GainProfile())
