# SPDX-License-Identifier: Apache-2.0
"""Builders: best-first growth against exhaustive search, random trees, and unions."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import Drawn, TokenTree
from pyspec.trees.builders import grow_best_first, merge_trees, prune, random_tree


def conditional(path: tuple[int, ...], vocab: int = 3) -> list[tuple[int, float]]:
    """A fixed random distribution for each path."""
    weights = np.random.default_rng([len(path), *path]).random(vocab) + 0.01
    return list(enumerate((weights / weights.sum()).tolist()))


@given(st.integers(1, 30), st.integers(0, 2))
def test_growth_keeps_the_likeliest_nodes(budget: int, root: int) -> None:
    tree, probability = grow_best_first(root, conditional, budget, max_depth=3)
    everything = {(root,): 1.0}
    for depth in range(1, 4):
        for path in itertools.product(range(3), repeat=depth):
            above = (root, *path[:-1])
            everything[(root, *path)] = everything[above] * dict(conditional(above))[path[-1]]
    likeliest = sorted(everything.values(), reverse=True)[:budget]
    np.testing.assert_allclose(probability, likeliest, rtol=1e-6)
    for node in range(len(tree)):
        path = tuple(tree.tokens[list(tree.path(node))].tolist())
        assert probability[node] == np.float32(everything[path])


def test_growth_leaves_out_what_is_unlikely_or_impossible() -> None:
    def two(path: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(1, 0.5), (2, 0.1), (3, 0.0)]

    tree, probability = grow_best_first(0, two, 100, min_probability=0.2)
    assert tree == TokenTree.chain([0, 1, 1])
    assert probability.tolist() == [1.0, 0.5, 0.25]
    assert len(grow_best_first(0, two, 100, max_depth=0)[0]) == 1
    assert 3 not in grow_best_first(0, two, 50)[0].tokens


@given(st.integers(1, 120), st.integers(1, 5), st.integers(0, 2**32))
def test_random_trees_are_valid_and_repeatable(num_nodes: int, max_children: int, seed: int) -> None:
    tree = random_tree(num_nodes, 7, seed, max_children=max_children)
    assert len(tree) == num_nodes
    assert max(map(len, tree.children)) <= max_children
    assert random_tree(num_nodes, 7, seed, max_children=max_children) == tree
    assert random_tree(num_nodes, 7, seed, root=3).tokens[0] == 3


@given(st.lists(token_trees(max_nodes=30), min_size=1, max_size=4), st.integers(1, 60))
def test_union_of_trees(trees: list[TokenTree], max_nodes: int) -> None:
    def paths(tree: TokenTree) -> set[tuple[int, ...]]:
        return {tuple(tree.tokens[list(tree.path(node))].tolist()) for node in range(len(tree))}

    trees = [
        TokenTree(np.concatenate(([5], tree.tokens[1:])).astype(np.int32), tree.parents) for tree in trees
    ]
    expected = set().union(*map(paths, trees))
    union = merge_trees(trees)
    assert paths(union) == expected
    assert len(union) == len(expected)
    assert not union.pruned
    cut = merge_trees(trees, max_nodes)
    assert cut.tokens.tolist() == union.tokens[:max_nodes].tolist()
    assert cut.parents.tolist() == union.parents[:max_nodes].tolist()
    assert cut.pruned == (max_nodes < len(expected))


def test_prune_keeps_closed_sets_alone() -> None:
    tree = TokenTree.from_paths(7, [[1, 2], [3]])
    assert prune(tree, [3, 0]) == TokenTree(
        np.array([7, 3], dtype=np.int32), np.array([-1, 0], dtype=np.int32), pruned=True
    )
    assert prune(tree, [0, 1, 2, 3]) == tree
    for keep, message in [
        ([], "prune: keep must hold the root and be < 4, got []"),
        ([0, 4], "prune: keep must hold the root and be < 4, got [0, 4]"),
        ([0, 2], "prune: keep must hold every parent, got 2 without 1"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            prune(tree, keep)


def test_bad_arguments_are_refused() -> None:
    chain = TokenTree.chain([1, 2])
    for call, message in [
        (lambda: grow_best_first(0, conditional, 0), "grow_best_first: budget must be in [1, 1024], got 0"),
        (
            lambda: grow_best_first(0, lambda path: [(4, 1.5)], 2),
            "grow_best_first: continuations must be in [0, 1], got 1.5 for token 4",
        ),
        (
            lambda: grow_best_first(0, lambda path: [(4, 0.5), (4, 0.5)], 3, max_depth=1),
            "TokenTree: tokens must differ between siblings of a tree drawn deterministic, "
            "got tokens[2] = 4 again below node 0",
        ),
        (lambda: random_tree(0, 5, 0), "random_tree: num_nodes must be in [1, 1024], got 0"),
        (lambda: random_tree(9, 3, 0), "random_tree: max_children must be in [1, 3], got 4"),
        (lambda: random_tree(9, 5, 0, root=5), "random_tree: root must be in [0, 5), got 5"),
        (lambda: merge_trees([]), "merge_trees: trees must hold at least one tree, got none"),
        (lambda: merge_trees([chain], 0), "merge_trees: max_nodes must be >= 1, got 0"),
        (
            lambda: merge_trees([chain, TokenTree.chain([2])]),
            "merge_trees: trees must have the root 1 (from trees[0]), got 2 in trees[1]",
        ),
        (
            lambda: merge_trees([chain, TokenTree.chain([1], Drawn.IID)]),
            "merge_trees: trees must all be drawn deterministic or all shared_noise, got iid in trees[1]",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
