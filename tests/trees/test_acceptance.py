# SPDX-License-Identifier: Apache-2.0
"""Calibration: recovers acceptance by probability, depth and rank from simulated walks, and follows changes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import TokenTree
from pyspec.trees.acceptance import MEMORY, Calibration, Predictions

CHAIN = Predictions(TokenTree.chain([0, 0, 0]).parents, np.float32([1, 0.6, 0.36]))


def walk(parents: np.ndarray, given_parent: np.ndarray, generator: np.random.Generator) -> list[int]:
    """The path of a target that goes to child i with probability given_parent[i]."""
    path = [0]
    while True:
        children = np.flatnonzero(parents == path[-1])
        draw, low = generator.random(), 0.0
        for child in children:
            if low <= draw < low + given_parent[child]:
                path.append(int(child))
                break
            low += given_parent[child]
        else:
            return path


def test_estimates_start_from_the_draft() -> None:
    np.testing.assert_allclose(Calibration().estimate(CHAIN), [1, 0.6, 0.36], rtol=1e-6)
    assert Calibration().estimate(Predictions(np.int32([-1]), np.float32([1]))) == [1.0]


def test_acceptance_is_learned_by_probability_depth_and_rank() -> None:
    parents = np.int32([-1, 0, 0, 1, 1, 2])
    said = Predictions(parents, np.float32([1, 0.6, 0.3, 0.36, 0.18, 0.18]))
    # What the draft says is 0.6 or 0.3 everywhere: depth and rank make the difference.
    truth = np.array([1, 0.9, 0.05, 0.3, 0.5, 0.7])
    path_truth = truth * [1, 1, 1, truth[1], truth[1], truth[2]]
    generator = np.random.default_rng(1)
    calibration = Calibration(decay=1.0)
    estimates = []
    for step in range(3000):
        calibration.observe(said, walk(parents, truth, generator))
        if step >= 1000:
            estimates.append(calibration.estimate(said))
    mean = np.mean(estimates, axis=0)
    np.testing.assert_allclose(mean, path_truth, atol=0.13)
    assert (
        abs(mean - path_truth).sum()
        < 0.5 * abs(np.float32([1, 0.6, 0.3, 0.36, 0.18, 0.18]) - path_truth).sum()
    )


@given(token_trees(max_nodes=40), st.integers(0, 100), st.integers(0, 60))
def test_estimates_are_probabilities_that_fall_along_paths(tree: TokenTree, seed: int, steps: int) -> None:
    generator = np.random.default_rng(seed)
    path = np.ones(len(tree), dtype=np.float32)
    for node in range(1, len(tree)):
        path[node] = path[tree.parents[node]] * generator.choice([0.0, 1.0, generator.random()])
    said = Predictions(tree.parents, path)
    shared = Calibration()
    calibration = Calibration(shared=shared)
    for _ in range(steps):
        calibration.observe(said, list(tree.path(int(generator.integers(len(tree))))))
    estimate = calibration.estimate(said)
    assert estimate[0] == 1.0
    assert all(0 <= value <= 1 for value in estimate)
    assert all(estimate[i] <= estimate[tree.parents[i]] for i in range(1, len(tree)))
    for counts in (calibration.by_probability, shared.by_probability, calibration.by_cell, shared.by_cell):
        assert max(counts.trials) <= MEMORY * counts.unit * (1 + 1e-9)


def test_what_hangs_below_a_rejected_node_tells_nothing() -> None:
    calibration = Calibration(decay=1.0)
    said = Predictions(CHAIN.links, np.float32([1, 0.9, 0.09]))
    for _ in range(300):
        calibration.observe(said, [0])
    assert calibration.estimate(said)[1] < 0.05
    assert calibration.estimate(Predictions([-1, 0], np.float32([1, 0.1])))[1] < 0.1  # by its depth
    deeper = calibration.estimate(said)
    assert deeper[2] / deeper[1] == pytest.approx(0.1, rel=1e-5)


def test_a_turn_of_the_text_is_followed_in_a_few_steps() -> None:
    calibration = Calibration()
    for _ in range(300):
        calibration.observe(CHAIN, [0])
    assert calibration.estimate(CHAIN)[1] < 0.1
    for _ in range(4):
        calibration.observe(CHAIN, [0, 1, 2])
    assert calibration.estimate(CHAIN)[1] > 0.3
    for _ in range(300):
        calibration.observe(CHAIN, [0, 1, 2])
    assert calibration.estimate(CHAIN)[2] > 0.9
    for _ in range(40):
        calibration.observe(CHAIN, [0])
    assert calibration.estimate(CHAIN)[1] < 0.4


def test_failures_are_forgotten_when_nothing_is_proposed() -> None:
    calibration = Calibration()
    for _ in range(50):
        calibration.observe(CHAIN, [0])
    low = calibration.estimate(CHAIN)[1]
    root = CHAIN.first(1)
    for _ in range(500):
        calibration.observe(root, [0])
    assert calibration.estimate(CHAIN)[1] > 0.5 > low


def test_a_new_request_starts_from_what_others_saw() -> None:
    shared = Calibration(prior=16.0, decay=0.999)
    first = Calibration(shared=shared)
    for _ in range(200):
        first.observe(CHAIN, [0, 1])
    fresh = Calibration(shared=shared)
    assert fresh.estimate(CHAIN)[1] > 0.8
    assert fresh.estimate(CHAIN)[2] < 0.4
    for _ in range(60):
        fresh.observe(CHAIN, [0])
    assert fresh.estimate(CHAIN)[1] < 0.3


def test_bad_calibrations_are_refused() -> None:
    for call, message in [
        (
            lambda: Calibration(buckets=0),
            "Calibration: buckets >= 1, prior > 0, 0 < decay <= 1 must hold, got 0, 8.0, 0.99",
        ),
        (
            lambda: Calibration(shared=Calibration(buckets=4)),
            "Calibration: shared must have 16 buckets, got 4",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
