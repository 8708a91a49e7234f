# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup: a chain copied from behind the newest earlier occurrence of the longest matching n-gram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyspec.trees import MAX_NODES, Drawn, TokenTree

from .base import Proposal


@dataclass(frozen=True)
class NgramDraft:
    """Chains by n-gram match.

    min_match, max_match  tokens of the shortest and the longest n-gram tried, 1 <= min <= max <= 64
    max_depth             most tokens copied
    """

    min_match: int = 2
    max_match: int = 5
    max_depth: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.min_match <= self.max_match <= 64:
            raise ValueError(
                f"NgramDraft: min_match, max_match must be 1 <= min <= max <= 64, "
                f"got {self.min_match}, {self.max_match}"
            )
        if self.max_depth < 0:
            raise ValueError(f"NgramDraft: max_depth must be >= 0, got {self.max_depth}")

    def start(self, prompt: Sequence[int]) -> NgramState:
        """The state of a request with this prompt."""
        return NgramState(self, prompt)


class NgramState:
    """The committed tokens of one request and where each n-gram ended last."""

    def __init__(self, draft: NgramDraft, prompt: Sequence[int]) -> None:
        self._draft = draft
        self._text: list[int] = []
        self._end_of: dict[tuple[int, ...], int] = {}
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends committed tokens; O(max_match) each."""
        text = self._text
        for token in tokens:
            text.append(int(token))
            for size in range(self._draft.min_match, min(self._draft.max_match, len(text)) + 1):
                self._end_of[tuple(text[-size:])] = len(text)

    def propose(self, root: int, budget: int) -> Proposal:
        """A chain of at most `budget` nodes; token d after a match of n has probability (n+d)/(n+d+1)."""
        if not 1 <= budget <= MAX_NODES:
            raise ValueError(f"NgramState.propose: budget must be in [1, {MAX_NODES}], got {budget}")
        context = [*self._text[-self._draft.max_match :], root]
        for size in range(min(self._draft.max_match, len(context)), self._draft.min_match - 1, -1):
            end = self._end_of.get(tuple(context[-size:]))
            if end is not None:
                break
        else:
            return Proposal.root(root)
        chain = [root]
        length = 1 + min(budget - 1, self._draft.max_depth)
        while len(chain) < length:
            at = end + len(chain) - 1
            chain.append(self._text[at] if at < len(self._text) else chain[at - len(self._text)])
        matched = np.arange(size, size + len(chain) - 1, dtype=np.float64)
        probability = np.cumprod(np.concatenate(([1.0], matched / (matched + 1))))
        tree = TokenTree.unchecked(
            np.array(chain, dtype=np.int32),
            np.arange(-1, len(chain) - 1, dtype=np.int32),
            Drawn.DETERMINISTIC,
        )
        return Proposal(tree, probability.astype(np.float32))
