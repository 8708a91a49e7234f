# SPDX-License-Identifier: Apache-2.0
"""softcap: error against float64, saturation, bad values."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import spec
from pyspec.contract import Case


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.softcap.cases()])
def test_close_to_float64(case: Case) -> None:
    (x,) = case.args
    exact = spec.softcap.reference(x.double(), **case.kwargs)
    assert torch.allclose(torch.ops.pyspec.softcap(x, **case.kwargs).double(), exact, rtol=0, atol=3e-7 * 30)


@needs_native
def test_extremes() -> None:
    x = torch.tensor([[0.0, 1e30, -1e30, float("inf"), -float("inf")]])
    assert torch.equal(torch.ops.pyspec.softcap(x, cap=30.0), torch.tensor([[0.0, 30.0, -30.0, 30.0, -30.0]]))


@needs_native
@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf")])
def test_bad_cap_is_refused_alike(cap: float) -> None:
    x = torch.zeros(1, 4)
    want = error_of(lambda: spec.softcap.run(x, cap=cap))
    assert want[1].startswith("softcap: cap must be positive and finite, got ")
    assert error_of(lambda: torch.ops.pyspec.softcap(x, cap=cap)) == want
