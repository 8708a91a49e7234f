# SPDX-License-Identifier: Apache-2.0
"""CUDA silu_mul, gelu_mul and softcap: error against float64, odd sizes, views, extremes."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of
from cuda_emulator import emulator
from emulated_calls import (
    all_same,
    emulated,
    how_caught,
    is_the_same_in_every_order,
    is_the_same_strided,
    same,
    shifted,
)

from pyspec import spec
from pyspec.contract import OPS, Case


def gate_case(M: int, F: int) -> Case:
    return Case(f"M{M}-F{F}", (torch.randn(M, 2 * F, generator=torch.Generator().manual_seed(F)) * 4,))


GATES = [
    (op, case) for op in ("silu_mul", "gelu_mul") for case in (*spec.silu_mul.cases(), gate_case(2, 516))
]
CASES = GATES + [("softcap", case) for case in spec.softcap.cases()]
PARAMETERS = [pytest.param(op, case, id=f"{op}-{case.name}") for op, case in CASES]


@pytest.mark.parametrize(("op", "case"), PARAMETERS)
def test_error_at_most_twice_that_of_float32(op: str, case: Case) -> None:
    exact = OPS[op].reference(case.args[0].double(), **case.kwargs)
    reference, (got,) = OPS[op].reference(*case.args, **case.kwargs), emulated(op, case)
    assert got.shape == exact.shape
    if exact.numel():
        limit = 2 * (reference - exact).abs().max() + 1e-7 * exact.abs().max()
        assert (got - exact).abs().max() <= limit


@pytest.mark.parametrize(("op", "case"), PARAMETERS)
def test_views(op: str, case: Case) -> None:
    want = emulated(op, case)
    assert is_the_same_strided(op, case)
    for elements in (1, 4):  # rows that fit accesses of 16 bytes no more, and that still do
        assert all_same([emulator.call(op, shifted(case.args[0], elements), **case.kwargs)], want)


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul"])
def test_gates_far_from_zero(op: str) -> None:
    gate = torch.tensor([[-200.0, -90.0, -20.0, 20.0, 90.0, 3e38, 0.0, -0.0]])
    got = emulator.call(op, torch.cat([gate, torch.ones(1, 8)], 1))
    assert torch.equal(got.isfinite(), torch.ones(1, 8, dtype=torch.bool))
    torch.testing.assert_close(got[:, 3:6], gate[:, 3:6])
    assert (got[:, :3] <= 0).all()
    assert (got[:, :3] > -1e-7).all()


def test_capped_logits_stay_within_the_cap() -> None:
    x = torch.tensor([[-torch.inf, -1e30, -90.0, 0.0, 1e-3, 90.0, torch.inf, torch.nan]])
    got = emulator.call("softcap", x, cap=30.0)
    assert same(got[:, [0, 1, 6]], torch.tensor([[-30.0, -30.0, 30.0]]))
    assert got[0, 3] == 0
    assert got.isnan().nonzero().tolist() == [[0, 7]]


@pytest.mark.parametrize(("op", "case"), [(op, case) for op, case in CASES if case.args[0].size(0) == 3])
def test_any_order_of_threads(op: str, case: Case) -> None:
    assert is_the_same_in_every_order(op, case)


def test_refusals() -> None:
    want = (ValueError, "gelu_mul: gate_up must be [M, N] with N even, got [2, 3]")
    assert error_of(lambda: emulator.call("gelu_mul", torch.zeros(2, 3))) == want
    want = (ValueError, "softcap: cap must be positive and finite, got 0")
    assert error_of(lambda: emulator.call("softcap", torch.zeros(2, 3), cap=0.0)) == want


GATE_BUGS = {1: "result", 2: "result", 3: "result", 4: "result"}
CAP_BUGS = {1: "result", 2: "result", 3: "out of bounds"}


@pytest.mark.parametrize("bug", GATE_BUGS)
def test_planted_bugs_of_the_gates_are_caught(bug: int) -> None:
    assert GATE_BUGS[bug] in how_caught("gelu_mul", [gate_case(2, 36)], bug)


@pytest.mark.parametrize("bug", CAP_BUGS)
def test_planted_bugs_of_softcap_are_caught(bug: int) -> None:
    case = Case("", (torch.randn(3, 15, generator=torch.Generator().manual_seed(1)) * 40,), {"cap": 30.0})
    assert CAP_BUGS[bug] in how_caught("softcap", [case], bug)
