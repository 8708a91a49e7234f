# SPDX-License-Identifier: Apache-2.0
"""CUDA draw_children under the emulator: the specification's bits, every schedule, views, planted bugs, passes over a row."""

from __future__ import annotations

import random

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from drawn_fuzz import children_call
from emulated_calls import (
    all_same,
    by_specification,
    emulated,
    how_caught,
    is_the_same_in_every_order,
    is_the_same_strided,
)

from pyspec import spec
from pyspec.contract import Case

OP = "draw_children"
CASES = list(spec.draw_children.cases())


def fuzz(rng: random.Random) -> Case:
    return Case("fuzz", *children_call(rng))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_equals_specification(case: Case) -> None:
    assert all_same(emulated(OP, case), by_specification(OP, case))


def test_equals_specification_on_hard_rows() -> None:
    rng = random.Random(11)
    calls = [fuzz(rng) for _ in range(80)]
    assert [i for i, c in enumerate(calls) if not all_same(emulated(OP, c), by_specification(OP, c))] == []


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]])
def test_every_order_of_threads_with_the_checker(case: Case) -> None:
    assert is_the_same_in_every_order(OP, case)


def test_views() -> None:
    assert is_the_same_strided(OP, CASES[0])
    assert is_the_same_strided(OP, CASES[5])


PLANTED = {
    31: {"result"},
    32: {"race"},
    33: {"result"},
    34: {"result"},
    35: {"result"},
}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bugs(bug: int) -> None:
    assert how_caught(OP, [CASES[0], CASES[3], CASES[4], CASES[6]], bug) >= PLANTED[bug]


@pytest.mark.parametrize(("rule", "passes"), [("iid", 2.2), ("without_replacement", 5.2), ("hybrid", 4.2)])
def test_passes_over_a_row(rule: str, passes: float) -> None:
    """Four children; the largest logit is a pass, each draw adds a part of one."""
    vocab = 16384
    args = [torch.randn(1, vocab), torch.tensor([4], dtype=torch.int32), torch.ones(1), torch.tensor([5])]
    with emulator.counting() as counters:
        emulator.call(OP, *args, *[torch.zeros(1, dtype=torch.int32)] * 3, width=4, rule=rule)
    read = counters.traffic["logits"]
    assert 32 * read.read_sectors_unique == 4 * vocab
    assert 32 * read.read_sectors <= 4 * vocab * (passes + 1)  # a lane's values lie in sectors of their own


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.draw_children):
        want = error_of(lambda args=args, kwargs=kwargs: spec.draw_children.run(*args, **kwargs))
        assert error_of(lambda args=args, kwargs=kwargs: emulator.call(OP, *args, **kwargs)) == want
