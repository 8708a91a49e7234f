# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies of token trees."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pyspec.trees import TokenTree


@st.composite
def token_trees(draw: st.DrawFn, max_nodes: int = 80) -> TokenTree:
    """Any valid tree with few distinct tokens, often deep or wide, over one mask word or more."""
    num_nodes = draw(st.integers(1, max_nodes))
    width = draw(st.integers(1, 9))
    choices = draw(st.lists(st.integers(0, 10**6), min_size=2 * num_nodes, max_size=2 * num_nodes))
    tokens, parents, below = [choices[0] % 11], [-1], [set()]
    for i in range(1, num_nodes):
        free = [node for node in range(max(0, i - width), i) if len(below[node]) < 11]
        parent = free[choices[2 * i] % len(free)]
        token = next(t for t in ((choices[2 * i + 1] + k) % 11 for k in range(11)) if t not in below[parent])
        below[parent].add(token)
        below.append(set())
        tokens.append(token)
        parents.append(parent)
    return TokenTree(np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32))
