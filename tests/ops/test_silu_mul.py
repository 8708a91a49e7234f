# SPDX-License-Identifier: Apache-2.0
"""silu_mul and gelu_mul: relative error against float64 everywhere, bad values, odd columns."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec.contract import OPS, Case

both = pytest.mark.parametrize("name", ["silu_mul", "gelu_mul"])


@needs_native
@both
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in OPS["silu_mul"].cases()])
def test_error_at_most_twice_that_of_float32(name: str, case: Case) -> None:
    (gate_up,) = case.args
    exact = OPS[name].reference(gate_up.double())
    reference, got = OPS[name].reference(gate_up), getattr(torch.ops.pyspec, name)(gate_up)
    assert got.shape == exact.shape
    if exact.numel():
        assert (got - exact).abs().max() <= 2 * (reference - exact).abs().max() + 1e-7 * exact.abs().max()


@needs_native
def test_silu_relative_error() -> None:
    gate = torch.linspace(-80, 80, 100001)
    got = torch.ops.pyspec.silu_mul(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    exact = torch.nn.functional.silu(gate.double())
    assert ((got - exact).abs() <= 1e-6 * exact.abs()).all()


@needs_native
@both
def test_extremes_and_bad_values(name: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e30, -1e30, 3e38, -200.0, 200.0, float("nan"), 1e-39])
    got = getattr(torch.ops.pyspec, name)(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    assert got[[0, 1]].tolist() == [0, 0]
    assert got[7].isnan()
    assert got[[3, 5]].abs().max() < 1e-30
    assert got[6] == 200
    if name == "silu_mul":
        assert torch.equal(got[[2, 4]], gate[[2, 4]])


@both
def test_refuses(name: str) -> None:
    want = (ValueError, f"{name}: gate_up must be [M, N] with N even, got [2, 3]")
    assert error_of(lambda: OPS[name].run(torch.zeros(2, 3))) == want
    assert error_of(lambda: getattr(torch.ops.pyspec, name)(torch.zeros(2, 3))) == want
