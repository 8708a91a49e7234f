# SPDX-License-Identifier: Apache-2.0
"""CUDA verify_drawn under the emulator: the specification's bits on every walk, every schedule, planted bugs, rows that are read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from drawn_fuzz import verify_call
from emulated_calls import all_same, by_specification, emulated, how_caught, is_the_same_in_every_order

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.verify_drawn import example

OP = "verify_drawn"
CASES = list(spec.verify_drawn.cases())
HARD = [Case(str(seed), *verify_call(random.Random(seed))) for seed in range(40)]


def agree(case: Case, **how: Any) -> bool:
    return all_same(emulated(OP, case, **how), by_specification(OP, case))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_equals_specification(case: Case) -> None:
    assert agree(case)


def test_equals_specification_on_hard_trees() -> None:
    assert [case.name for case in HARD if not agree(case)] == []


@pytest.mark.parametrize("walk", ["top_down", "traversal", "target"])
def test_every_order_of_threads_with_the_checker(walk: str) -> None:
    case = example(((2, 1), (1, 1)), 40, 2, "hybrid", walk, 3)
    assert is_the_same_in_every_order(OP, case)


PLANTED = {41: "race", 42: "result", 43: "result", 44: "result", 45: "result"}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bugs(bug: int) -> None:
    deep = example(((2, 2, 1), (2, 1, 1)), 130, 0, "without_replacement", "traversal", 0)
    assert PLANTED[bug] in how_caught(OP, [*CASES[3:6], *HARD[:8], deep], bug)


def test_rows_that_the_walk_does_not_need_are_not_read() -> None:
    """Top-down the siblings of the path have rows that may hold anything."""
    case = example(((3, 2, 2),), 300, 0, "iid", "top_down", 1)
    path = emulated(OP, case)[0][0].tolist()
    for i in range(case.args[0].size(0)):
        if i not in path:
            case.args[0][i] = torch.nan
            case.args[5][case.args[6][i]] = torch.nan
    assert emulated(OP, case)[0][0].tolist() == path


def test_a_path_longer_than_max_path_is_cut_there() -> None:
    """The device cannot refuse it; it must not write beyond the outputs either."""
    case = example(((1, 1, 1, 1),), 8, 1, "deterministic", "target", 2)
    case.args[9].fill_(0)
    case.args[1][1:] = case.args[0].argmax(1)[:-1]
    kwargs = {**case.kwargs, "max_path": 2}
    path, path_len, *_ = emulator.call(OP, *case.args, **kwargs)
    assert (path.tolist(), path_len.tolist()) == ([[0, 1]], [2])


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.verify_drawn):
        want = error_of(lambda args=args, kwargs=kwargs: spec.verify_drawn.run(*args, **kwargs))
        assert error_of(lambda args=args, kwargs=kwargs: emulator.call(OP, *args, **kwargs)) == want
