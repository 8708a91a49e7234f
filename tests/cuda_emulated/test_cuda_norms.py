# SPDX-License-Identifier: Apache-2.0
"""CUDA rms_norm, add_rms_norm and rms_norm_quantize: error against float64, rows alone, fused and quantised steps alike."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of
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
from pyspec.contract import Case
from pyspec.spec.append_kv import quantise_rows


def norm_case(M: int, K: int) -> Case:
    g = torch.Generator().manual_seed(M + K)
    return Case(
        f"M{M}-K{K}", (torch.randn(M, K, generator=g), torch.rand(K, generator=g) + 0.5), {"eps": 1e-5}
    )


# 3 x 8199: more than a thread keeps of a row; 2 x 132: a last warp that is not full
CASES = [
    *spec.rms_norm.cases(),
    norm_case(3, 8199),
    norm_case(2, 8256),
    norm_case(2, 132),
    norm_case(1, 4096),
]
PARAMETERS = [pytest.param(case, id=case.name) for case in CASES]


def with_residual(case: Case) -> Case:
    x, weight = case.args
    return Case(case.name, (x.flip(0).clone(), x, weight), case.kwargs)


@pytest.mark.parametrize("case", PARAMETERS)
def test_error_at_most_twice_that_of_float32(case: Case) -> None:
    x, weight = case.args
    exact = spec.rms_norm.reference(x.double(), weight.double(), **case.kwargs)
    reference = spec.rms_norm.reference(x, weight, **case.kwargs)
    (got,) = emulated("rms_norm", case)
    assert got.shape == exact.shape
    if exact.numel():
        limit = 2 * (reference - exact).abs().max() + 1e-7 * exact.abs().max()
        assert (got - exact).abs().max() <= limit


@pytest.mark.parametrize("case", PARAMETERS)
def test_fused_equals_the_two_steps(case: Case) -> None:
    residual, delta, weight = copies(with_residual(case))
    want_sum = residual + delta
    want = emulator.call("rms_norm", want_sum, weight, **case.kwargs)
    assert all_same(emulated("add_rms_norm", with_residual(case)), [want, want_sum])


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("fused", [False, True])
def test_quantised_is_the_norm_quantised_by_the_specification(case: Case, fused: bool) -> None:
    x, weight = case.args
    residual = x.flip(0).clone() if fused else None
    total = x if residual is None else residual + x
    want = quantise_rows(emulator.call("rms_norm", total, weight, **case.kwargs), torch.int8)
    got = emulated("rms_norm_quantize", Case("", (x, weight, residual), case.kwargs))
    assert all_same(got, [*want, total] if fused else [*want])


@pytest.mark.parametrize("case", PARAMETERS)
def test_views(case: Case) -> None:
    x, weight = case.args
    want = emulated("rms_norm", case)
    assert is_the_same_strided("rms_norm", case)
    assert all_same([emulator.call("rms_norm", shifted(x), shifted(weight), **case.kwargs)], want)
    assert all_same([emulator.call("rms_norm", shifted(x, 4), weight, **case.kwargs)], want)
    assert is_the_same_strided("add_rms_norm", with_residual(case))
    if x.numel():
        quantised = Case("", (x, weight, x.flip(0).clone()), case.kwargs)
        assert is_the_same_strided("rms_norm_quantize", quantised)
        got = emulator.call("rms_norm_quantize", shifted(x), weight, x.flip(0).clone(), **case.kwargs)
        assert all_same([*got], emulated("rms_norm_quantize", quantised)[:2])


def test_rows_do_not_depend_on_the_batch() -> None:
    x, weight = norm_case(20, 200).args
    whole = emulator.call("rms_norm", x, weight)
    q, scale = emulator.call("rms_norm_quantize", x, weight, None)
    for m in range(20):
        assert same(emulator.call("rms_norm", x[m : m + 1], weight)[0], whole[m])
        one = emulator.call("rms_norm_quantize", x[m : m + 1], weight, None)
        assert all_same([*one], [q[m : m + 1], scale[m : m + 1]])


def test_extreme_rows_poison_themselves_alone() -> None:
    x, weight = norm_case(5, 80).args
    x[0, 3], x[1, 5], x[2], x[3] = torch.nan, torch.inf, 0, 1e-38
    y = emulator.call("rms_norm", x, weight, eps=0.0)
    q, scale = emulator.call("rms_norm_quantize", x, weight, None, eps=0.0)
    assert all_same([q, scale], [*quantise_rows(y, torch.int8)])
    assert scale[:3].isnan().all()
    assert q[4].abs().max() == 127


@pytest.mark.parametrize("case", [norm_case(3, 140), norm_case(2, 77)], ids=lambda case: case.name)
def test_any_order_of_threads(case: Case) -> None:
    assert is_the_same_in_every_order("rms_norm", case)
    assert is_the_same_in_every_order("add_rms_norm", with_residual(case))
    x, weight = case.args
    assert is_the_same_in_every_order("rms_norm_quantize", Case("", (x, weight, x.clone()), case.kwargs))


def test_refuses_rows_of_nothing() -> None:
    want = (ValueError, "rms_norm_quantize: x must be [M, K] with K >= 1, got [2, 0]")
    assert (
        error_of(lambda: emulator.call("rms_norm_quantize", torch.zeros(2, 0), torch.zeros(0), None)) == want
    )
    assert emulator.call("rms_norm", torch.zeros(2, 0), torch.zeros(0)).shape == (2, 0)


BUGS = {1: "race", 2: "result", 3: "result"}
QUANTIZE_BUGS = {1: "race", 2: "result", 3: "race", 4: "result", 5: "race"}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_of_the_norms_are_caught(bug: int) -> None:
    assert BUGS[bug] in how_caught("add_rms_norm", [with_residual(norm_case(3, 200))], bug)


@pytest.mark.parametrize("bug", QUANTIZE_BUGS)
def test_planted_bugs_of_rms_norm_quantize_are_caught(bug: int) -> None:
    x, weight = norm_case(3, 200).args
    case = Case("", (x, weight * torch.linspace(1, 9, 200), x.clone()))
    assert QUANTIZE_BUGS[bug] in how_caught("rms_norm_quantize", [case], bug)
