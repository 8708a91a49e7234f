# SPDX-License-Identifier: Apache-2.0
"""TokenTree: derived quantities against their definitions, builders, bad input, and exact verifiers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import Drawn, TokenTree, TreeBatch


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


TREE = TokenTree(ints(5, 1, 2, 3, 1), ints(-1, 0, 0, 1, 2))


def ancestors(tree: TokenTree, node: int) -> set[int]:
    found = set()
    while node >= 0:
        found.add(node)
        node = int(tree.parents[node])
    return found


@given(token_trees(max_nodes=200))
def test_derived_quantities_follow_their_definitions(tree: TokenTree) -> None:
    sets = [ancestors(tree, node) for node in range(len(tree))]
    assert tree.depths.tolist() == [len(above) - 1 for above in sets]
    assert tree.depth == max(len(above) for above in sets) - 1
    mask = tree.ancestor_mask()
    assert mask.dtype == np.int64
    assert mask.shape == (len(tree), -(-len(tree) // 64))
    for i, above in enumerate(sets):
        words = [int(word) & (2**64 - 1) for word in mask[i]]
        assert {j for j in range(64 * len(words)) if words[j // 64] >> j % 64 & 1} == above
    leaves = [node for node in range(len(tree)) if node not in tree.parents.tolist()]
    assert [set(path) for path in tree.paths] == [sets[leaf] for leaf in leaves]
    assert all(list(path) == sorted(path) for path in tree.paths)
    assert tree.is_chain == (tree.depth == len(tree) - 1)
    for parent, children in enumerate(tree.children):
        assert list(children) == np.flatnonzero(tree.parents == parent).tolist()


@given(token_trees(), st.data())
def test_builders_invert_the_views(tree: TokenTree, data: st.DataObject) -> None:
    def paths(tree: TokenTree) -> set[tuple[int, ...]]:
        return {tuple(tree.tokens[list(path)].tolist()) for path in tree.paths}

    rebuilt = TokenTree.from_paths(int(tree.tokens[0]), [path[1:] for path in sorted(paths(tree))])
    assert len(rebuilt) == len(tree)
    assert paths(rebuilt) == paths(tree)

    order = data.draw(st.permutations(range(len(tree))))
    place = {node: i for i, node in enumerate(order)}
    place[-1] = -1
    shuffled = TokenTree.from_parents(
        tree.tokens[order], np.array([place[int(tree.parents[node])] for node in order], dtype=np.int32)
    )
    assert paths(shuffled) == paths(tree)

    node = data.draw(st.integers(0, len(tree) - 1))
    below = tree.subtree(node)
    assert len(below) == sum(node in ancestors(tree, other) for other in range(len(tree)))
    prefix = tuple(tree.tokens[list(tree.path(node))].tolist())[:-1]
    assert {prefix + path for path in paths(below)} <= paths(tree)

    count = data.draw(st.integers(1, len(tree)))
    cut = tree.prefix(count)
    assert cut.pruned == (count < len(tree))
    assert TokenTree(cut.tokens, cut.parents, pruned=cut.pruned) == cut
    assert cut.tokens.tolist() == tree.tokens[:count].tolist()


@given(st.lists(token_trees(max_nodes=100), max_size=4))
def test_batch_is_the_concatenation(trees: list[TokenTree]) -> None:
    batch = TreeBatch.of(trees)
    assert len(batch) == len(trees)
    assert batch.cu_t.dtype == np.int32
    mask = batch.ancestor_mask()
    assert len(mask) == len(batch.tokens) == batch.cu_t[-1]
    for b, tree in enumerate(trees):
        own = slice(batch.cu_t[b], batch.cu_t[b + 1])
        assert batch.tokens[own].tolist() == tree.tokens.tolist()
        assert batch.parents[own].tolist() == tree.parents.tolist()
        assert batch.depths[own].tolist() == tree.depths.tolist()
        words = tree.ancestor_mask().shape[1]
        assert np.array_equal(mask[own, :words], tree.ancestor_mask())
        assert not mask[own, words:].any()


def test_chain() -> None:
    chain = TokenTree.chain([4, 4, 4])
    assert chain.is_chain
    assert chain.parents.tolist() == [-1, 0, 1]
    assert TokenTree.chain([7]).depth == 0


def test_a_tree_is_immutable_and_owns_its_arrays() -> None:
    tokens = ints(1, 2)
    tree = TokenTree(tokens, ints(-1, 0))
    tokens[0] = 9
    assert tree.tokens.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        tree.tokens[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        tree.depths[0] = 3
    with pytest.raises(AttributeError):
        tree.tokens = tokens  # type: ignore[misc]


def test_equal_trees_hash_alike() -> None:
    again = TokenTree.from_parents([5, 1, 2, 3, 1], [-1, 0, 0, 1, 2])
    assert again == TREE
    assert hash(again) == hash(TREE)
    assert TokenTree(TREE.tokens, TREE.parents, Drawn.IID) != TREE
    assert TokenTree(TREE.tokens, TREE.parents, pruned=True) != TREE


@pytest.mark.parametrize(
    ("tokens", "parents", "error", "message"),
    [
        ([], [], ValueError, "TokenTree: tokens must have 1 to 1024 nodes, got 0"),
        ([0] * 1025, range(-1, 1024), ValueError, "TokenTree: tokens must have 1 to 1024 nodes, got 1025"),
        ([1, 2], [-1], ValueError, "TokenTree: parents must have 2 nodes (from tokens), got 1"),
        ([[1]], [-1], ValueError, "TokenTree: tokens must be one-dimensional, got shape [1, 1]"),
        ([1.5], [-1], TypeError, "TokenTree: tokens must be int32, got float64"),
        (np.array([1]), [-1], TypeError, "TokenTree: tokens must be int32, got int64"),
        ([2**31], [-1], ValueError, "TokenTree: tokens must fit int32, got 2147483648"),
        ([1, -4], [-1, 0], ValueError, "TokenTree: tokens must be >= 0, got tokens[1] = -4"),
        ([1, 2], [0, 0], ValueError, "TokenTree: parents must start with -1 (the root), got parents[0] = 0"),
        (
            [1, 2, 3],
            [-1, 0, -1],
            ValueError,
            "TokenTree: parents must be -1 for the root and in [0, 3), got parents[2] = -1",
        ),
        (
            [1, 2],
            [-1, 2],
            ValueError,
            "TokenTree: parents must be -1 for the root and in [0, 2), got parents[1] = 2",
        ),
        ([1, 2], [-1, 1], ValueError, "TokenTree: parents must be acyclic, got parents[1] = 1"),
        ([1, 2, 3], [-1, 2, 1], ValueError, "TokenTree: parents must be acyclic, got parents[1] = 2"),
        (
            [1, 2, 3],
            [-1, 2, 0],
            ValueError,
            "TokenTree: parents must be sorted (parents[i] < i), got parents[1] = 2",
        ),
        (
            [1, 2, 3, 2],
            [-1, 0, 0, 0],
            ValueError,
            "TokenTree: tokens must differ between siblings of a tree drawn deterministic, "
            "got tokens[3] = 2 again below node 0",
        ),
    ],
)
def test_bad_trees_are_refused(tokens: list, parents: list, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        TokenTree(tokens, list(parents))  # type: ignore[arg-type]


def test_other_bad_arguments_are_refused() -> None:
    for call, message in [
        (lambda: TREE.prefix(0), "TokenTree.prefix: max_nodes must be >= 1, got 0"),
        (lambda: TREE.subtree(5), "TokenTree.subtree: node must be in [0, 5), got 5"),
        (lambda: TREE.ancestor_mask(0), "TokenTree.ancestor_mask: num_words must be >= 1, got 0"),
        (
            lambda: TokenTree.from_parents([1, 2], [-1, -1]),
            "TokenTree.from_parents: parents must be -1 for exactly one root, got 2 roots",
        ),
        (
            lambda: TokenTree.from_parents([1, 2, 3], [-1, 2, 1]),
            "TokenTree.from_parents: parents must be acyclic, got parents[1] = 2",
        ),
        (
            lambda: TokenTree.from_parents([1, 2], [-1, 7]),
            "TokenTree.from_parents: parents must be -1 for the root and in [0, 2), got parents[1] = 7",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
    with pytest.raises(TypeError, match="^TokenTree: drawn must be a Drawn, got 'iid'$"):
        TokenTree(TREE.tokens, TREE.parents, "iid")  # type: ignore[arg-type]


def test_equal_siblings_are_allowed_for_independent_draws() -> None:
    assert len(TokenTree(ints(1, 2, 2), ints(-1, 0, 0), Drawn.IID)) == 3
