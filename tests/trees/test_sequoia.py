# SPDX-License-Identifier: Apache-2.0
"""The dynamic programme against every shape there is, and against greedy growth where that is optimal too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspec.trees.builders import grow_best_first
from pyspec.trees.sequoia import expected_accepted, fastest_shape, sequoia_shape
from pyspec.trees.shapes import Shape, parse_shape, shape_children, shape_depths, shape_of_parents


def every_shape(nodes: int) -> Iterator[Shape]:
    """All shapes of so many nodes, some of them more than once."""

    def grow(parents: list[int]) -> Iterator[Shape]:
        if len(parents) == nodes:
            yield shape_of_parents(parents)
            return
        for parent in range(
            parents[-1] if len(parents) > 1 else 0, len(parents)
        ):  # level order: parents never fall
            yield from grow([*parents, parent])

    yield from grow([-1])


rates = st.lists(st.floats(0, 1), min_size=1, max_size=3)


@given(st.one_of(rates, st.lists(rates.filter(lambda row: len(row) == 2), min_size=2, max_size=3)), st.integers(1, 6),
       st.integers(0, 4), st.integers(1, 3))  # fmt: skip
def test_no_shape_is_better(acceptance: list, budget: int, max_depth: int, max_children: int) -> None:
    planned = sequoia_shape(acceptance, budget, max_depth=max_depth, max_children=max_children)
    ranks = np.atleast_2d(np.array(acceptance)).shape[1]

    def fits(shape: Shape) -> bool:
        widest = max(map(len, shape_children(shape)))
        return max(shape_depths(shape)) <= max_depth and widest <= min(max_children, ranks)

    assert len(planned.shape) <= budget
    assert fits(planned.shape)
    assert planned.accepted == pytest.approx(expected_accepted(planned.shape, acceptance), abs=1e-9)
    best = max(
        expected_accepted(s, acceptance) for n in range(1, budget + 1) for s in every_shape(n) if fits(s)
    )
    assert planned.accepted == pytest.approx(best, abs=1e-9)


@given(st.lists(st.floats(0.01, 0.6), min_size=1, max_size=4), st.integers(1, 40))
def test_falling_acceptance_makes_it_greedy(acceptance: list[float], budget: int) -> None:
    falling = sorted(acceptance, reverse=True)
    planned = sequoia_shape(falling, budget, max_depth=40)
    _, probability = grow_best_first(0, lambda path: enumerate(falling), budget)
    assert planned.accepted == pytest.approx(float(probability[1:].sum()), rel=1e-4)


def test_shapes_of_known_acceptance() -> None:
    assert sequoia_shape([1.0], 5).shape == parse_shape("chain4")
    assert sequoia_shape([0.3, 0.3], 3).shape == parse_shape("2")
    assert sequoia_shape([0.9, 0.1], 4) == (parse_shape("chain3"), pytest.approx(0.9 + 0.81 + 0.729))
    assert sequoia_shape([0.0], 9) == ((-1,), 0.0)
    assert sequoia_shape([0.0, 0.9], 3).shape == parse_shape("2")  # the second only with the first
    assert sequoia_shape([[0.5, 0.4], [0.0, 0.0]], 9).shape == parse_shape("2")


def test_expected_accepted_agrees_with_simulated_walks() -> None:
    generator = np.random.default_rng(3)
    table = np.array([[0.5, 0.2, 0.1], [0.4, 0.3, 0.0]])
    shape = sequoia_shape(table, 12).shape
    children, counts = shape_children(shape), []
    for _ in range(20000):
        node = depth = 0
        while children[node]:
            rank = int(np.searchsorted(np.cumsum(table[min(depth, 1)]), generator.random()))
            if rank >= len(children[node]):
                break
            node, depth = children[node][rank], depth + 1
        counts.append(depth)
    error = np.std(counts) / len(counts) ** 0.5
    assert np.mean(counts) == pytest.approx(expected_accepted(shape, table), abs=5 * error)


@given(st.lists(st.floats(0.05, 0.5), min_size=1, max_size=3), st.floats(0, 0.5), st.floats(0, 0.5))
def test_fastest_shape_has_the_best_rate_of_all(acceptance: list[float], slope: float, level: float) -> None:
    acceptance = sorted(acceptance, reverse=True)
    seconds = [1 + slope * n for n in range(7)]
    planned = fastest_shape(acceptance, seconds, level_seconds=level)

    def rate(shape: Shape) -> float:
        tokens = 1 + expected_accepted(shape, acceptance)
        return tokens / (seconds[len(shape) - 1] + level * max(shape_depths(shape)))

    fits = lambda shape: max(map(len, shape_children(shape))) <= len(acceptance)
    best = max(rate(shape) for n in range(1, 8) for shape in every_shape(n) if fits(shape))
    assert rate(planned.shape) == pytest.approx(best, rel=1e-9)


def test_bad_arguments_are_refused() -> None:
    for call, message in [
        (lambda: sequoia_shape([0.5, 1.5], 3), "sequoia_shape: acceptance must be in [0, 1], got 1.5"),
        (lambda: sequoia_shape([np.nan], 3), "sequoia_shape: acceptance must be in [0, 1], got nan"),
        (
            lambda: sequoia_shape([], 3),
            "sequoia_shape: acceptance must be [ranks] or [depths, ranks], got shape [0]",
        ),
        (lambda: sequoia_shape([0.5], 0), "sequoia_shape: budget must be in [1, 1024], got 0"),
        (
            lambda: sequoia_shape([0.5], 3, max_depth=-1),
            "sequoia_shape: max_depth >= 0, max_children >= 1 must hold",
        ),
        (lambda: fastest_shape([0.5], [1.0, 0.0]), "fastest_shape: seconds must be a row of finite positive"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
