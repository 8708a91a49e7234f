# SPDX-License-Identifier: Apache-2.0
"""ModelState: where the model of a draft is in one request's text, and what it has to catch up with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pyspec.spec.pipeline import GREEDY_BELOW

from .base import Law
from .feature_rows import FeatureRows

if TYPE_CHECKING:
    from pyspec.engine.draft_runner import DraftRunner


class ModelState:
    """Where the model is in one request's text."""

    def __init__(self, runner: DraftRunner, law: Law, vocab_size: int, with_features: bool) -> None:
        self._runner, self._vocab_size, self._with_features = runner, vocab_size, with_features
        self.law, self.text = law, runner.open()
        self.count = 0  # committed tokens
        self.step = 0  # proposals so far
        self.problem = ""  # why there can be none any more
        self._tokens: list[int] = []  # committed ones whose entries are not computed yet
        self._features = FeatureRows()  # of the entries to come, the root's is the last
        self._last: Tensor | None = None  # features of the entry of the root
        self._rooted = False  # whether the last entry is a root that is not committed yet

    @property
    def draw_temperature(self) -> float:
        """Of children drawn with fresh randomness: that of the request, and 1 without sampling, where one token alone would have a weight."""
        return self.law.temperature if self.law.temperature >= GREEDY_BELOW else 1.0

    def extend(self, tokens: Sequence[int], features: Tensor | None = None) -> None:
        """Queue entries; they are computed with the next proposal."""
        if not len(tokens):
            return
        known = self._rooted or (self._with_features and not self.count)  # has its entry, or has none at all
        self.count += len(tokens)
        self._rooted = False
        self._queue(tokens[1:] if known else tokens)
        if self._with_features:
            if features is None or len(features) != len(tokens):
                found = "none" if features is None else list(features.shape)
                raise ValueError(f"ModelDraft: features must be [{len(tokens)}, columns], got {found}")
            self._features.append(features)

    def entries(self, root: int) -> tuple[list[int], Tensor | None]:
        """Tokens, and features, of the entries that end with the root's."""
        if self._rooted:  # a proposal was made and nothing came of it: the root's entry is computed again
            self.text.row.kv_len -= 1
            return [root], self._last
        rows = self._features.first(len(self._features)) if self._with_features else None
        return [*self._tokens, root], rows

    def computed(self, features: Tensor | None) -> None:
        """The entries are in the model's cache."""
        self._tokens, self._rooted = [], True
        self._features.drop(len(self._features))
        self._last = None if features is None else features[-1:].clone()

    def room(self) -> int:
        """Entries that the model can still take."""
        return self._runner.sizes.max_entries - self.text.length - len(self._tokens)

    def close(self) -> None:
        self._runner.close(self.text)

    def _queue(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        if len(tokens) and max(tokens) >= self._vocab_size:
            self.problem = f"the draft model has {self._vocab_size} tokens, the text has token {max(tokens)}"
