# SPDX-License-Identifier: Apache-2.0
"""Static shapes from text and from parents."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import TokenTree
from pyspec.trees.shapes import balanced_shape, parse_shape, shape_children, shape_depths, shape_of_parents


def test_texts_name_shapes() -> None:
    assert parse_shape("chain3") == parse_shape("1-1-1") == (-1, 0, 1, 2)
    assert parse_shape("chain0") == parse_shape("-1") == (-1,)
    assert parse_shape("2-2") == (-1, 0, 0, 1, 1, 2, 2)
    assert parse_shape(" -1, 0,0 ,1") == (-1, 0, 0, 1)
    assert parse_shape("2,2,-1") == (-1, 0, 0)
    assert len(parse_shape("4-2-1")) == 1 + 4 + 8 + 8
    assert shape_depths(parse_shape("4-2-1"))[-8:] == [3] * 8
    assert shape_children(parse_shape("2-1")) == [[1, 2], [3], [4], [], []]


@given(token_trees(max_nodes=40), st.randoms(use_true_random=False))
def test_parents_in_any_order_are_put_in_level_order(tree: TokenTree, random) -> None:
    order = list(range(len(tree)))
    random.shuffle(order)
    place = {node: i for i, node in enumerate(order)}
    shuffled = [place.get(int(tree.parents[node]), -1) for node in order]
    shape = shape_of_parents(shuffled)
    depths = shape_depths(shape)
    assert depths == sorted(depths)
    assert sorted(depths) == sorted(tree.depths.tolist())
    assert sorted(map(len, shape_children(shape))) == sorted(map(len, tree.children))
    assert shape_of_parents(shape) == shape


def test_bad_shapes_are_refused() -> None:
    for call, message in [
        (
            lambda: parse_shape("4-"),
            'parse_shape: text must be like "4-2-1", "chain5" or "-1,0,0,1", got \'4-\'',
        ),
        (lambda: parse_shape(""), "parse_shape: text must be like"),
        (lambda: parse_shape("chain-5"), "parse_shape: text must be like"),
        (lambda: parse_shape("chain9999"), "balanced_shape: children must give at most 1024 nodes"),
        (
            lambda: parse_shape("99-99-99"),
            "balanced_shape: children must give at most 1024 nodes, got 99-99-99",
        ),
        (lambda: parse_shape("2-0-2"), "balanced_shape: children must be >= 1, got 0"),
        (lambda: balanced_shape([-1]), "balanced_shape: children must be >= 1, got -1"),
        (lambda: parse_shape("-1,5"), "shape_of_parents: parents must be in [-1, 2), got 5 at 1"),
        (
            lambda: parse_shape("-1,-1"),
            "shape_of_parents: parents must be -1 for exactly one root, got 2 roots",
        ),
        (lambda: parse_shape("1,0,-1"), "shape_of_parents: parents must be acyclic, got 2 nodes in cycles"),
        (lambda: shape_of_parents([]), "shape_of_parents: parents must have 1 to 1024 nodes, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
