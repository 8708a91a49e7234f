# SPDX-License-Identifier: Apache-2.0
"""rms_norm_quantize: rms_norm, then int8 rows with a scale; the residual stream in place; rows alone."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of

from pyspec import spec
from pyspec.contract import Case

CASES = [pytest.param(case, id=case.name) for case in spec.rms_norm_quantize.cases()]
op = torch.ops.pyspec.rms_norm_quantize


@pytest.mark.parametrize("case", CASES)
def test_is_the_norm_within_half_a_step(case: Case) -> None:
    x, weight, residual = copies(case)
    total = x if residual is None else residual + x
    want = spec.rms_norm.run(total, weight, **case.kwargs)
    q, scale = op(x, weight, residual, **case.kwargs)
    assert ((q * scale[:, None] - want).abs() <= 0.5001 * scale[:, None]).all()
    assert (q.abs().amax(1, keepdim=True) == 127).all()
    if residual is not None:
        assert torch.equal(residual, total)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_independent(case: Case) -> None:
    x, weight, residual = copies(case)
    q, scale = op(*copies(case), **case.kwargs)
    for m in range(len(x)):
        row = slice(m, m + 1)
        one = op(x[row], weight, None if residual is None else residual[row], **case.kwargs)
        assert torch.equal(one[0], q[row])
        assert torch.equal(one[1], scale[row])


def test_extreme_rows_poison_themselves_alone() -> None:
    x = torch.randn(4, 40)
    x[0, 3], x[1, 5], x[2] = torch.nan, torch.inf, 0
    q, scale = op(x, torch.ones(40), None)
    assert torch.equal(scale.isnan(), torch.tensor([True, True, False, False]))
    assert torch.equal(q[:3], torch.zeros(3, 40, dtype=torch.int8))
    assert scale[2] == 0
    assert q[3].abs().max() == 127


def test_refuses_rows_of_nothing() -> None:
    want = (ValueError, "rms_norm_quantize: x must be [M, K] with K >= 1, got [2, 0]")
    assert error_of(lambda: op(torch.zeros(2, 0), torch.zeros(0), None)) == want
