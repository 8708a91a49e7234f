# SPDX-License-Identifier: Apache-2.0
"""Policies of growth: against exhaustive search and against the definition, with a draft whose law is a table."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspec.trees import Drawn, TokenTree
from pyspec.trees.builders import grow_best_first
from pyspec.trees.grown_hybrid import GrownHybridPolicy, hybrid_counts
from pyspec.trees.policy import BestFirstPolicy, Growth, StaticPolicy
from pyspec.trees.shapes import parse_shape

VOCAB = 5


def law(path: list[int], seed: int, zeros: bool = False) -> np.ndarray:
    """The draft's law after `path`: float32 [VOCAB]."""
    weights = np.random.default_rng([seed, *path]).random(VOCAB) ** 3
    if zeros:
        weights[np.random.default_rng([seed, 1, *path]).permutation(VOCAB)[:3]] = 0
    return (weights / weights.sum()).astype(np.float32)


def build_level(growth: Growth, seed: int, zeros: bool = False) -> bool:
    """What a draft does in one level, with build_tree's rules; False when the growth wants no more."""
    level = growth.level()
    if level is None:
        return False
    with np.errstate(divide="ignore"):
        logs = np.log(np.stack([law(growth.path(int(node)), seed, zeros) for node in level.nodes]))
    scores = level.scores[:, None] + logs
    if level.per_node:
        ids = np.argsort(-scores, axis=1, kind="stable")[:, : level.width]
        parents = np.repeat(np.arange(len(scores)), ids.shape[1])
        tokens, values = ids.ravel(), np.take_along_axis(scores, ids, 1).ravel()
    else:
        flat = np.argsort(-scores.ravel(), kind="stable")[: level.width]
        parents, tokens, values = flat // VOCAB, flat % VOCAB, scores.ravel()[flat]
    growth.add(np.where(values > -np.inf, tokens, -1).astype(np.int32), parents.astype(np.int32), values)
    return True


def draw_level(growth: Growth, seed: int, generator: np.random.Generator) -> bool:
    """The same for the rule hybrid."""
    level = growth.level()
    if level is None:
        return False
    laws = [law(growth.path(int(node)), seed) for node in level.nodes]
    counts = growth.counts(-np.sort(-np.stack(laws), axis=1))
    tokens, parents, scores = [], [], []
    for i, (q, count) in enumerate(zip(laws, counts.tolist(), strict=True)):
        if count:
            likely = np.argsort(-q, kind="stable")[: count - 1].tolist()
            rest = np.delete(np.arange(VOCAB), likely)
            children = [int(generator.choice(rest)), *likely]
            tokens += children
            parents += [i] * count
            scores += [float(level.scores[i] + np.log(q[x])) for x in children]
    growth.add(tokens, parents, scores)
    return True


@given(st.integers(1, 25), st.integers(0, 3), st.integers(0, 50), st.booleans())
def test_best_first_is_the_best_tree_of_all(budget: int, max_depth: int, seed: int, zeros: bool) -> None:
    policy = BestFirstPolicy(max_depth=max_depth, beam=max(1, budget - 1))
    growth = policy.start(2, budget)
    levels = 0
    while build_level(growth, seed, zeros):
        levels += 1
    assert levels <= max_depth
    tree, probability = growth.finish()
    expected, best = grow_best_first(
        2, lambda path: list(enumerate(law(list(path), seed, zeros).tolist())), budget, max_depth=max_depth
    )
    np.testing.assert_allclose(probability, best, rtol=1e-5)
    np.testing.assert_allclose(probability[0], 1.0)
    assert len(tree) == len(expected)
    assert tree.drawn is Drawn.SHARED_NOISE
    assert (np.diff(probability) <= 0).all()
    for node in range(1, len(tree)):
        path = tree.tokens[list(tree.path(node))].tolist()
        assert probability[node] == pytest.approx(
            probability[tree.parents[node]] * law(path[:-1], seed, zeros)[path[-1]]
        )


@given(st.integers(2, 25), st.integers(1, 4), st.integers(0, 50))
def test_a_narrow_beam_is_the_best_of_what_it_saw(budget: int, beam: int, seed: int) -> None:
    growth = BestFirstPolicy(Drawn.DETERMINISTIC, max_depth=3, beam=beam).start(2, budget)
    while (level := growth.level()) is not None:
        assert len(level.nodes) <= beam
        build_level(growth, seed)
    tree, probability = growth.finish()
    assert len(tree) <= budget
    assert tree.drawn is Drawn.DETERMINISTIC
    assert (np.diff(probability) <= 0).all()
    best = BestFirstPolicy(Drawn.DETERMINISTIC, max_depth=3, beam=24).start(2, budget)
    while build_level(best, seed):
        pass
    assert probability.sum() <= best.finish()[1].sum() * (1 + 1e-6)


def test_levels_that_cannot_change_the_result_are_not_asked_for() -> None:
    growth = BestFirstPolicy(max_depth=9, beam=8).start(0, 3)
    growth.add([1, 2], [0, 0], np.log(np.float32([0.5, 0.5])))
    assert growth.level() is None  # two nodes of 0.5; no child can beat them
    growth = BestFirstPolicy(max_depth=9, beam=8).start(0, 3)
    growth.add([1, 2], [0, 0], np.log(np.float32([0.7, 0.2])))
    level = growth.level()
    assert level is not None
    assert level.nodes.tolist() == [1]  # a child of the second one is at most 0.2
    assert (level.width, level.per_node) == (2, False)
    growth.add([5, 6], [0, 0], np.log(np.float32([0.6, 0.1])))
    assert growth.finish()[0] == TokenTree(
        np.int32([0, 1, 5]), np.int32([-1, 0, 1]), Drawn.SHARED_NOISE, pruned=True
    )


def test_growth_stops_where_a_level_gains_too_little() -> None:
    for policy in (BestFirstPolicy(), StaticPolicy(parse_shape("2-2-2"))):
        growth = policy.start(0, 15, min_gain=0.4)
        growth.add([1, 2], [0, 0], np.log(np.float32([0.5, 0.2])))
        assert growth.level() is not None  # 0.7 may be gained
        growth.add([3, 4], [0, 0], np.log(np.float32([0.3, 0.05])))
        assert growth.level() is None
        assert len(growth.finish()[0]) == 5


@given(
    st.sampled_from(["4-2-1", "chain5", "1-3", "-1,0,0,1,1,3", "chain0"]),
    st.integers(1, 30),
    st.integers(0, 30),
)
def test_static_shapes_are_filled_by_rank(text: str, budget: int, seed: int) -> None:
    shape = parse_shape(text)
    growth = StaticPolicy(shape, Drawn.DETERMINISTIC).start(3, budget)
    while build_level(growth, seed):
        pass
    tree, probability = growth.finish()
    paths = [[3]]
    for node in range(1, min(budget, len(shape))):
        above = paths[shape[node]]
        rank = shape[:node].count(shape[node])
        paths.append([*above, int(np.argsort(-law(above, seed), kind="stable")[rank])])
    found = [tree.tokens[list(tree.path(node))].tolist() for node in range(len(tree))]
    assert sorted(found) == sorted(paths)
    assert (np.diff(probability) <= 0).all()
    assert not tree.pruned


def test_static_shapes_leave_out_what_the_law_does_not_have() -> None:
    growth = StaticPolicy(parse_shape("4-1"), Drawn.DETERMINISTIC).start(3, 9)
    while build_level(growth, 1, zeros=True):
        pass
    tree, _ = growth.finish()
    assert [len(children) for children in tree.children][:1] == [2]  # two tokens have probability
    assert len(tree) == 5


def test_drawn_children_keep_their_order_and_number() -> None:
    for drawn in (Drawn.IID, Drawn.WITHOUT_REPLACEMENT, Drawn.HYBRID):
        growth = StaticPolicy(parse_shape("2-1"), drawn).start(0, 5)
        level = growth.level()
        assert level is not None
        assert growth.counts(np.zeros((1, 2), np.float32)).tolist() == [2]
        with pytest.raises(ValueError, match="more of frontier node 0"):
            growth.add([1, 2, 3], [0, 0, 0], [-3.0, -1.0, -2.0])
        growth.add([4, 2], [0, 0], [-3.0, -1.0])
        growth.add([6, 7], [0, 1], [-3.5, -1.5])
        tree, probability = growth.finish()
        assert tree == TokenTree(np.int32([0, 4, 2, 6, 7]), np.int32([-1, 0, 0, 1, 2]), drawn)
        np.testing.assert_allclose(probability, np.exp([0, -3, -1, -3.5, -1.5]), rtol=1e-6)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
    st.integers(0, 8),
    st.floats(0.5, 0.95),
    st.integers(0, 99),
)
def test_hybrid_counts_have_the_largest_gain_of_all(
    weights: list[float], total: int, agreement: float, seed: int
) -> None:
    top = [np.sort(law([i], seed))[::-1].tolist() for i in range(len(weights))]

    def gain(counts: tuple[int, ...]) -> float:
        return sum(
            w * (agreement * (k > 0) + (1 - agreement) * sum(q[: max(0, k - 1)]))
            for w, q, k in zip(weights, top, counts, strict=True)
        )

    counts = hybrid_counts(weights, top, total, agreement)
    assert sum(counts) <= total
    choices = itertools.product(range(VOCAB + 1), repeat=len(weights))
    assert gain(tuple(counts)) >= max(gain(c) for c in choices if sum(c) <= total) - 1e-9


def test_hybrid_counts_leave_something_to_draw_from() -> None:
    assert hybrid_counts([1.0], [[0.7, 0.3, 0.0]], 9, 0.8) == [2]  # T = {0.7}; with T = both nothing is left
    assert hybrid_counts([1.0], [[1.0, 0.0]], 9, 0.8) == [1]
    assert hybrid_counts([0.0, 1.0], [[0.5], [0.5]], 9, 0.8) == [0, 1]
    assert hybrid_counts([], [], 3, 0.8) == []


@given(st.integers(1, 20), st.integers(0, 40))
def test_grown_hybrid_trees_have_their_levels(budget: int, seed: int) -> None:
    growth = GrownHybridPolicy((3, 4, 2)).start(1, budget)
    generator = np.random.default_rng(seed)
    while draw_level(growth, seed, generator):
        pass
    tree, probability = growth.finish()
    assert tree.drawn is Drawn.HYBRID
    assert not tree.pruned
    assert len(tree) == min(budget, 10)
    for depth, count in enumerate((3, 4, 2), start=1):
        assert int((tree.depths == depth).sum()) == max(
            0, min(count, budget - int((tree.depths < depth).sum()))
        )
    for node, children in enumerate(tree.children):
        if children:
            q = law(tree.tokens[list(tree.path(node))].tolist(), seed)
            likely = np.argsort(-q, kind="stable")[: len(children) - 1].tolist()
            assert tree.tokens[list(children[1:])].tolist() == likely
            assert int(tree.tokens[children[0]]) not in likely
            outside = probability[node] * 0.8 * (1 - q[likely].sum())
            np.testing.assert_allclose(probability[children[0]], outside, rtol=1e-3, atol=1e-6)


def test_bad_arguments_are_refused() -> None:
    growth = BestFirstPolicy().start(0, 5)
    hybrid = GrownHybridPolicy().start(0, 5)
    for call, error, message in [
        (
            lambda: growth.add([1], [0, 0], [0.0]),
            ValueError,
            "Growth.add: tokens, parents, scores must be [n], got",
        ),
        (lambda: growth.add([1], [1], [-1.0]), ValueError, "Growth.add: parents must be in [0, 1), got 1"),
        (lambda: growth.add([1], [-1], [-1.0]), ValueError, "Growth.add: parents must be in [0, 1), got -1"),
        (
            lambda: growth.add([7], [0], [np.nan]),
            ValueError,
            "Growth.add: scores must not be NaN, got NaN for token 7",
        ),
        (
            lambda: growth.counts(np.zeros((1, 1))),
            TypeError,
            "Growth.counts: children must be drawn with fresh",
        ),
        (lambda: hybrid.add([1], [0], [-1.0]), ValueError, "Growth.add: counts must be asked for before"),
        (lambda: hybrid.counts(np.zeros(3)), ValueError, "Growth.counts: top_q must be [1, m], got [3]"),
        (
            lambda: BestFirstPolicy().start(0, 0),
            ValueError,
            "TreePolicy.start: budget must be in [1, 1024], got 0",
        ),
        (
            lambda: BestFirstPolicy(Drawn.IID),
            ValueError,
            "BestFirstPolicy: drawn must be deterministic|shared_noise",
        ),
        (
            lambda: BestFirstPolicy(beam=0),
            ValueError,
            "BestFirstPolicy: max_depth >= 0, beam >= 1, both < 1024",
        ),
        (
            lambda: GrownHybridPolicy(agreement=0.4),
            ValueError,
            "GrownHybridPolicy: agreement must be in [0.5, 1)",
        ),
        (
            lambda: GrownHybridPolicy((0,)),
            ValueError,
            "GrownHybridPolicy: level_nodes must be in [1, 1024), got [0]",
        ),
    ]:
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            call()
    level = growth.level()
    assert level is not None  # bad calls left nothing behind
    assert level.nodes.tolist() == [0]
    assert len(growth.finish()[0]) == 1
