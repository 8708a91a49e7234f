# SPDX-License-Identifier: Apache-2.0
"""CUDA quantize_activations: values, scales and sums of the specification bit for bit."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of
from cuda_emulator import emulator
from emulated_calls import (
    all_same,
    by_specification,
    emulated,
    how_caught,
    is_the_same_in_every_order,
    is_the_same_strided,
    shifted,
)

from pyspec import spec
from pyspec.contract import Case

OP = "quantize_activations"
CASES = [pytest.param(case, id=case.name) for case in spec.quantize_activations.cases()]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_specification(case: Case) -> None:
    assert all_same(emulated(OP, case), by_specification(OP, case))


@pytest.mark.parametrize("case", CASES)
def test_views(case: Case) -> None:
    want = emulated(OP, case)
    assert is_the_same_strided(OP, case)
    for elements in (1, 4):
        assert all_same([*emulator.call(OP, shifted(case.args[0], elements))], want)


@pytest.mark.parametrize("K", [32, 96, 544])  # one group, an odd number in a warp, more than a block
def test_any_order_of_threads(K: int) -> None:
    x = torch.randn(2, K, generator=torch.Generator().manual_seed(K))
    assert is_the_same_in_every_order(OP, Case("", (x,)))


def test_refuses() -> None:
    want = (ValueError, "quantize_activations: x must be [M, K] with K a multiple of 32, got [2, 33]")
    assert error_of(lambda: emulator.call(OP, torch.zeros(2, 33))) == want


@pytest.mark.parametrize("bug", [1, 2, 3, 4])
def test_planted_bugs_are_caught(bug: int) -> None:
    extremes = [case for case in spec.quantize_activations.cases() if case.name == "extremes"]
    assert how_caught(OP, extremes, bug) == {"result"}
