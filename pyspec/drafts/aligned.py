# SPDX-License-Identifier: Apache-2.0
"""AlignedDraft: a model with another tokenizer than the target's drafts by text (see alignment.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from pyspec.models.tokenizer import Tokenizer
from pyspec.trees import Drawn
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy, TreePolicy

from .alignment import TextAlignment
from .base import DraftState, Failure, Law, Proposal
from .model import ModelDraft
from .model_state import ModelState

if TYPE_CHECKING:
    from pyspec.engine.draft_runner import DraftRunner


class AlignedState(ModelState):
    """The text of one request in the draft's tokens. Entries that re-encoding changed are computed again."""

    def __init__(self, runner: DraftRunner, law: Law, vocab_size: int, alignment: TextAlignment) -> None:
        super().__init__(runner, law, vocab_size, with_features=False)
        self.alignment = alignment

    def extend(self, tokens: Sequence[int], features: Tensor | None = None) -> None:
        """Committed tokens of the target; the first is the root of the last proposal, if there was one."""
        if len(tokens):
            self._align(tokens[1:] if self._rooted else tokens)
            self.count += len(tokens)
            self._rooted = False

    def root(self, token: int) -> int | None:
        """The draft's last token of the text that ends with the target's `token`; None where that is within a character."""
        if not self._rooted:
            self._align([token])
            self._rooted = True
        return self.alignment.tokens[-1] if self.alignment.tokens and self.alignment.complete else None

    def entries(self, root: int) -> tuple[list[int], Tensor | None]:
        """The draft's tokens that have no entry; the last one again, where all have."""
        self.text.row.kv_len = min(self.text.length, len(self.alignment.tokens) - 1)
        return self.alignment.tokens[self.text.length :], None

    def room(self) -> int:
        return self._runner.sizes.max_entries - len(self.alignment.tokens) + 1

    def _align(self, tokens: Sequence[int]) -> None:
        self.text.row.kv_len = min(self.text.length, self.alignment.extend(tokens))


class AlignedDraft:
    """A draft by the model of `inner`, whose tokens are those of `tokenizer`.

    Trees are deterministic: the noise of the verification, and draws that a verifier could know, are over the target's tokens.
    """

    taps: tuple[int, ...] = ()

    def __init__(
        self, inner: ModelDraft, model_vocab_size: int, tokenizer: Tokenizer, target: Tokenizer
    ) -> None:
        """model_vocab_size: token ids that the model can read."""
        self.name, self.policy, self.levels = inner.name, inner.policy, 0
        self._inner, self._vocab_size = inner, model_vocab_size
        self._tokenizer, self._target = tokenizer, target

    def start(self, law: Law, max_tokens: int) -> AlignedState:
        return AlignedState(
            self._inner.runner, law, self._vocab_size, TextAlignment(self._target, self._tokenizer)
        )

    def nbytes(self) -> int:
        return self._inner.nbytes()

    def propose(
        self,
        states: Sequence[DraftState],
        roots: Sequence[int],
        budgets: Sequence[int],
        min_gain: float = 0.0,
    ) -> list[Proposal | Failure]:
        """As every draft; the root alone within a character. min_gain counts the draft's own tokens."""
        results: list[Proposal | Failure] = [Proposal.root(root) for root in roots]
        asked: list[tuple[int, AlignedState, int]] = []
        for i, (state, root) in enumerate(zip(states, roots, strict=True)):
            assert isinstance(state, AlignedState)
            if (own := state.root(root)) is not None:
                asked.append((i, state, own))
        self.levels = 0
        if not asked:
            return results
        drafted = self._inner.propose(
            [state for _, state, _ in asked],
            [own for *_, own in asked],
            [budgets[i] for i, *_ in asked],
            min_gain,
        )
        self.levels = self._inner.levels
        for (i, state, _), proposal in zip(asked, drafted, strict=True):
            if isinstance(proposal, Proposal):
                proposal = state.alignment.proposal(roots[i], proposal, budgets[i])
            results[i] = proposal
        return results


def without_noise(policy: TreePolicy) -> TreePolicy:
    """The same trees by the draft's law alone; ValueError for trees drawn with fresh randomness."""
    if not isinstance(policy, (BestFirstPolicy, StaticPolicy)):
        found = type(policy).__name__
        raise ValueError(
            f"LLM: draft_policy must be BestFirstPolicy or StaticPolicy for another tokenizer, got {found}"
        )
    return replace(policy, drawn=Drawn.DETERMINISTIC)
