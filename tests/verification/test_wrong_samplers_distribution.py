# SPDX-License-Identifier: Apache-2.0
"""Twenty samplers that are wrong in one thing each, all of them seen in the distribution of what is emitted.

Their distances agree to the last of four digits with those of an independent implementation on the instance
of the slow test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from enumeration import Laws, drawn_trees, instance, memoised, step_law, verifier
from wrong_samplers import (
    block_ratios_forward,
    likeliest,
    noise_of_the_draft_for_the_extra_token,
    one_noise_for_two_positions,
    threshold,
    top_down,
    traversal,
    two_steps,
)

from pyspec.spec.rejection import Tree

WOR = "without_replacement"
SEEN = 5e-3
CHAIN = (1, 1)
# Total variation of three tokens over V = 4, two children below each node of two levels (chains for 12, 15, 20; 18: one token, 19: two).
KNOWN = [
    0.0166, 0.0227, 0.3053, 0.3396, 0.8107, 0.0704, 0.0610, 0.0353, 0.0193, 0.0786, 0.3507, 0.0222, 0.1224, 0.1288, 0.0523,
    0.3749, 0.3716, 0.0155, 0.2516, 0.0131,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _memoised(monkeypatch: pytest.MonkeyPatch) -> None:
    memoised(monkeypatch)


def controls(p: Laws, q: Laws, shape: tuple[int, ...]) -> list[Callable[[], float]]:
    """The distance of every wrong sampler, in the order of docs/ops/verification.md."""

    @cache
    def drawn(rule: str, shape: tuple[int, ...] = shape) -> dict[Tree, float]:
        return drawn_trees(rule, q, shape)

    law = lambda verify, rule=WOR, at=shape: (
        lambda: step_law(verify, drawn(rule, at), p, len(shape) + 1).distance
    )
    right = verifier("top_down", WOR, p, q)
    warmer = lambda w: w ** (1 / 0.7) / (w ** (1 / 0.7)).sum()
    filtered = {context: likeliest(w, 2) for context, w in p.items()}
    return [
        law(verifier("top_down", "iid", p, q)), law(top_down(p, q, ""), "iid"), law(right, "sorted_by_value"),
        law(right, "sorted_by_id"), law(right, "deterministic"), law(top_down(p, q, "not_updated")),
        law(top_down(p, q, "extra_from_p")), law(top_down(p, q, "extra_masked")), law(top_down(p, q, "shared_uniform")),
        law(top_down(p, q, "", warmer)), law(top_down(p, q, "parent_row")), law(traversal(p, q, "product"), at=CHAIN),
        law(traversal(p, q, "a_kept")), law(traversal(p, q, "unscaled")), law(block_ratios_forward(p, q), at=CHAIN),
        law(threshold(p)),
        lambda: step_law(top_down(p, q, "late_filter"), drawn(WOR), filtered, len(shape) + 1).distance,
        lambda: noise_of_the_draft_for_the_extra_token(p[()], q[()]), lambda: one_noise_for_two_positions(p),
        lambda: two_steps(lambda p, q: verifier("traversal", WOR, p, q), p, q, fresh=False),
    ]  # fmt: skip


def test_wrong_samplers_are_seen_in_the_distribution() -> None:
    p, q = instance(4, 3, 19, spread=1.0)
    distances = [control() for control in controls(p, q, (2, 1))]
    assert len(distances) == 20
    assert [i for i, distance in enumerate(distances, start=1) if distance < SEEN] == []


@pytest.mark.distribution
def test_wrong_samplers_of_a_wider_tree_have_the_known_distances_in_the_distribution() -> None:
    p, q = instance(4, 3, 19, spread=1.0)
    assert [control() for control in controls(p, q, (2, 2))] == pytest.approx(KNOWN, abs=5.1e-5)


def test_what_the_wrong_samplers_are_made_of_is_right_without_the_defect_in_the_distribution() -> None:
    p, q = instance(4, 3, 19, spread=1.0)
    drawn = drawn_trees(WOR, q, (2, 1))
    for verify in (top_down(p, q, ""), traversal(p, q, "")):
        assert step_law(verify, drawn, p, 3).distance < 1e-12


@pytest.mark.parametrize("walk", ["top_down", "traversal"])
def test_randomness_of_a_position_used_again_biases_traversal_alone_in_the_distribution(walk: str) -> None:
    """Why draws are keyed by the step and not by the position."""
    p, q = instance(4, 3, 19, spread=1.0)
    verify = lambda p, q: verifier(walk, WOR, p, q)
    assert two_steps(verify, p, q, fresh=True) < 1e-11  # the cuts between uniform numbers are rounded
    reused = two_steps(verify, p, q, fresh=False)
    assert reused < 1e-11 if walk == "top_down" else reused > SEEN
