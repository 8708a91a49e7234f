# SPDX-License-Identifier: Apache-2.0
"""The draft vocabulary: the tokens that answers use most. An LM head over these alone is what a draft step can afford to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def draft_vocabulary(
    answers: Iterable[Sequence[int]], size: int, vocab_size: int, always: Sequence[int]
) -> Tensor:
    """int64 [size], ascending: `always`, then the most frequent tokens of `answers` (the lower id where two are equal).

    Where answers have fewer distinct tokens, the lowest other ids fill it up. ValueError unless 1 <= size <= vocab_size.
    """
    if not 1 <= size <= vocab_size:
        raise ValueError(f"train-draft: draft_vocab_size must be in [1, vocab_size={vocab_size}], got {size}")
    counts = Counter(token for answer in answers for token in answer)
    ranked = [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    chosen = list(dict.fromkeys([*always, *ranked, *range(vocab_size)]))[:size]
    return torch.tensor(sorted(chosen))


def coverage(answers: Iterable[Sequence[int]], draft_ids: Tensor) -> float:
    """Share of the tokens of `answers` that the draft vocabulary has: no draft can be right more often."""
    known = set(draft_ids.tolist())
    hits = [token in known for answer in answers for token in answer]
    return sum(hits) / max(1, len(hits))
