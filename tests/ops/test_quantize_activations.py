# SPDX-License-Identifier: Apache-2.0
"""quantize_activations: bit for bit the specification, extremes and ties included."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import spec
from pyspec.contract import Case


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.quantize_activations.cases()])
def test_equals_the_specification(case: Case) -> None:
    for got, want in zip(
        torch.ops.pyspec.quantize_activations(*case.args),
        spec.quantize_activations.run(*case.args),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_error_is_half_a_step() -> None:
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    q, scale, _ = spec.quantize_activations.run(x)
    back = q.unflatten(1, (8, 32)) * scale[..., None]
    assert ((back - x.unflatten(1, (8, 32))).abs() <= 0.50001 * scale[..., None]).all()
    assert q.abs().amax() == 127


def test_refuses() -> None:
    want = (ValueError, "quantize_activations: x must be [M, K] with K a multiple of 32, got [2, 33]")
    assert error_of(lambda: spec.quantize_activations.run(torch.zeros(2, 33))) == want
    assert error_of(lambda: torch.ops.pyspec.quantize_activations(torch.zeros(2, 33))) == want
