# SPDX-License-Identifier: Apache-2.0
"""Merging of drafts: against a slow definition over paths, and what must hold whatever the trees are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import Drawn, TokenTree
from pyspec.trees.merging import merge_drafts


def with_probabilities(tree: TokenTree, seed: int) -> tuple[TokenTree, np.ndarray]:
    generator = np.random.default_rng(seed)
    path = np.ones(len(tree), dtype=np.float32)
    for node in range(1, len(tree)):
        path[node] = path[tree.parents[node]] * generator.choice([0.0, 1.0, generator.random()])
    return TokenTree(np.concatenate(([5], tree.tokens[1:])).astype(np.int32), tree.parents, tree.drawn), path


def by_path(tree: TokenTree, probability: np.ndarray) -> dict[tuple[int, ...], float]:
    return {tuple(tree.tokens[list(tree.path(i))].tolist()): float(probability[i]) for i in range(len(tree))}


drafts = st.lists(
    st.builds(with_probabilities, token_trees(max_nodes=25), st.integers(0, 10**6)), min_size=1, max_size=3
)


@given(drafts, st.integers(1, 60))
def test_the_likeliest_nodes_of_the_union_are_kept(many: list, budget: int) -> None:
    said = [by_path(*draft) for draft in many]
    paths = sorted(set().union(*said), key=len)
    given_parent: dict[tuple[int, ...], float] = {}
    for path in paths[1:]:
        miss = 1.0
        for one in said:
            if path in one:
                miss *= 1 - (one[path] / one[path[:-1]] if one[path[:-1]] > 0 else 0.0)
        given_parent[path] = 1 - miss
    expected = {(5,): 1.0}
    for path in paths[1:]:
        siblings = sum(p for other, p in given_parent.items() if other[:-1] == path[:-1])
        expected[path] = expected[path[:-1]] * given_parent[path] / max(1.0, siblings)
    tree, probability = merge_drafts([tree for tree, _ in many], [path for _, path in many], budget)
    assert len(tree) == min(budget, len(paths))
    assert tree.pruned == (len(tree) < len(paths))
    assert (np.diff(probability) <= 0).all()
    for path, value in by_path(tree, probability).items():
        assert value == pytest.approx(expected[path], abs=1e-5)
    np.testing.assert_allclose(probability, sorted(expected.values(), reverse=True)[:budget], atol=1e-5)


def test_agreement_makes_a_node_likelier() -> None:
    suffix = TokenTree.chain([5, 1, 2])
    head = TokenTree.from_paths(5, [[1], [3]])
    head = TokenTree(head.tokens, head.parents, Drawn.SHARED_NOISE)
    tree, probability = merge_drafts([suffix, head], [np.float32([1, 0.5, 0.4]), np.float32([1, 0.6, 0.1])])
    assert tree == TokenTree(np.int32([5, 1, 2, 3]), np.int32([-1, 0, 1, 0]), Drawn.SHARED_NOISE)
    np.testing.assert_allclose(probability, [1, 0.8, 0.64, 0.1], rtol=1e-6)  # 1 - 0.5 * 0.4; 0.8 * 0.4 / 0.5
    alone, same = merge_drafts([suffix], [np.float32([1, 0.5, 0.4])])
    assert alone == suffix
    assert same.tolist() == np.float32([1, 0.5, 0.4]).tolist()


def test_bad_arguments_are_refused() -> None:
    chain, sure = TokenTree.chain([1, 2]), np.float32([1, 1])
    for call, message in [
        (
            lambda: merge_drafts([], []),
            "merge_drafts: trees must be at least one, with probabilities each, got 0 and 0",
        ),
        (
            lambda: merge_drafts([chain], []),
            "merge_drafts: trees must be at least one, with probabilities each",
        ),
        (lambda: merge_drafts([chain], [sure], 0), "merge_drafts: budget must be in [1, 1024], got 0"),
        (
            lambda: merge_drafts([chain, TokenTree.chain([2, 2])], [sure, sure]),
            "merge_drafts: trees must have root 1, be deterministic or shared_noise, got root 2, deterministic in trees[1]",
        ),
        (
            lambda: merge_drafts([TokenTree.chain([1, 2], Drawn.HYBRID)], [sure]),
            "merge_drafts: trees must have root 1, be deterministic or shared_noise, got root 1, hybrid in trees[0]",
        ),
        (
            lambda: merge_drafts([chain], [sure[:1]]),
            "merge_drafts: path_probabilities[0] must be [2], got [1]",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
