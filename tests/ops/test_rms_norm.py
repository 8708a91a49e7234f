# SPDX-License-Identifier: Apache-2.0
"""rms_norm and add_rms_norm: error against float64, row independence, fusion."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, needs_native

from pyspec import spec
from pyspec.contract import Case

CASES = [pytest.param(case, id=case.name) for case in spec.rms_norm.cases()]


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_error_at_most_twice_that_of_float32(case: Case) -> None:
    x, weight = case.args
    exact = spec.rms_norm.reference(x.double(), weight.double(), **case.kwargs)
    reference = spec.rms_norm.reference(x, weight, **case.kwargs)
    got = torch.ops.pyspec.rms_norm(x, weight, **case.kwargs)
    assert got.shape == exact.shape
    if exact.numel():
        limit = 2 * (reference - exact).abs().max() + 1e-7 * exact.abs().max()
        assert (got - exact).abs().max() <= limit


@needs_native
def test_rows_do_not_depend_on_the_batch() -> None:
    x, weight = torch.randn(70, 576), torch.rand(576)
    whole = torch.ops.pyspec.rms_norm(x, weight)
    for m in range(70):
        assert torch.equal(torch.ops.pyspec.rms_norm(x[m : m + 1], weight)[0], whole[m])


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.add_rms_norm.cases()])
def test_fused_equals_the_two_steps(case: Case) -> None:
    residual, delta, weight = copies(case)
    want_sum = residual + delta
    want = torch.ops.pyspec.rms_norm(want_sum, weight, **case.kwargs)
    assert torch.equal(torch.ops.pyspec.add_rms_norm(residual, delta, weight, **case.kwargs), want)
    assert torch.equal(residual, want_sum)
