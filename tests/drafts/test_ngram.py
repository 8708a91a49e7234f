# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup against its definition by brute force."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspec.drafts import NgramDraft


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=10),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 12),
)
def test_chains_follow_the_newest_longest_match(
    prompt: list[int], output: list[int], root: int, min_match: int, extra: int, budget: int
) -> None:
    state = NgramDraft(min_match, min_match + extra, max_depth=8).start(prompt)
    state.extend(output)
    proposal = state.propose(root, budget)
    text = [*prompt, *output]
    context = [*text, root]
    expected = [root]
    ends = [
        (size, end)
        for size in range(min_match, min_match + extra + 1)
        for end in range(size, len(text) + 1)
        if size <= len(context) and text[end - size : end] == context[-size:]
    ]
    probability = [1.0]
    if ends:
        size, end = max(ends)
        for depth in range(min(budget - 1, 8)):
            expected.append([*text, *expected][end + depth])
            probability.append(probability[-1] * (size + depth) / (size + depth + 1))
    assert proposal.tree.tokens.tolist() == expected
    assert proposal.tree.is_chain
    np.testing.assert_allclose(proposal.path_probability, probability, rtol=1e-6)
    assert proposal.path_probability.dtype == np.float32


def test_bad_arguments_are_refused() -> None:
    for call, message in [
        (
            lambda: NgramDraft(0, 3),
            "NgramDraft: min_match, max_match must be 1 <= min <= max <= 64, got 0, 3",
        ),
        (
            lambda: NgramDraft(4, 3),
            "NgramDraft: min_match, max_match must be 1 <= min <= max <= 64, got 4, 3",
        ),
        (lambda: NgramDraft(max_depth=-1), "NgramDraft: max_depth must be >= 0, got -1"),
        (
            lambda: NgramDraft().start([]).propose(1, 0),
            "NgramState.propose: budget must be in [1, 1024], got 0",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
