# SPDX-License-Identifier: Apache-2.0
"""fp8_linear: values by hand, the three granularities, rows one by one, bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import error_of

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec.fp8_linear import dequantize

F8 = torch.float8_e4m3fn


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.fp8_linear.cases()])
def test_equals_a_product_with_the_dequantised_weight(case: Case) -> None:
    x, weight, scale = case.args
    want = (x.double() @ dequantize(weight, scale, case.kwargs["granularity"]).T).float()
    torch.testing.assert_close(ops.fp8_linear(x, weight, scale, **case.kwargs), want, rtol=1e-6, atol=1e-6)


def test_dequantised_values() -> None:
    """By hand: 130 channels and 130 k have four blocks, whose scales meet at channel and k 128."""
    weight = torch.full((130, 130), 1.5).to(F8)
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    dense = dequantize(weight, scale, "block")
    assert dense[127, 127:129].tolist() == [1.5, 3.0]
    assert dense[128, 127:129].tolist() == [6.0, 12.0]
    assert dequantize(weight, torch.full((1, 1), 3.0), "tensor")[129, 129] == 4.5
    assert dequantize(weight, torch.arange(130.0)[:, None], "channel")[100, 7] == 150.0


def test_extreme_weights() -> None:
    """The largest value, the smallest subnormal, both zeros; NaN poisons its channel alone."""
    weight = torch.tensor([[448.0, -448.0], [2.0**-9, -(2.0**-9)], [0.0, -0.0], [torch.nan, 1.0]]).to(F8)
    out = ops.fp8_linear(torch.tensor([[1.0, 3.0]]), weight, torch.ones(1, 1), granularity="tensor")
    assert out[0, :3].tolist() == [-896.0, -(2.0**-8), 0.0]
    assert out[0, 3].isnan()


def test_rows_do_not_depend_on_the_batch() -> None:
    g = torch.Generator().manual_seed(3)
    x, weight = torch.randn(16, 200, generator=g), torch.randn(24, 200, generator=g).to(F8)
    scale = torch.rand(1, 2, generator=g)
    whole = ops.fp8_linear(x, weight, scale, granularity="block")
    for m in range(16):
        assert torch.equal(ops.fp8_linear(x[m : m + 1], weight, scale, granularity="block")[0], whole[m])


def refused() -> list[Any]:
    return [
        ((1, 1), "row", "granularity must be tensor|channel|block, got row"),
        ((1, 1), "channel", "scale must be [X, Y] with X=130, Y=1 (granularity channel), got [1, 1]"),
        ((130, 1), "tensor", "scale must be [X, Y] with X=1, Y=1 (granularity tensor), got [130, 1]"),
        ((1, 3), "block", "scale must be [X, Y] with X=2, Y=3 (granularity block), got [1, 3]"),
    ]


@pytest.mark.parametrize(("shape", "granularity", "want"), refused())
def test_refuses(shape: tuple[int, int], granularity: str, want: str) -> None:
    x, weight, scale = torch.zeros(2, 257), torch.zeros(130, 257).to(F8), torch.zeros(shape)
    error = (ValueError, f"fp8_linear: {want}")
    assert error_of(lambda: spec.fp8_linear.run(x, weight, scale, granularity=granularity)) == error
    assert error_of(lambda: ops.fp8_linear(x, weight, scale, granularity=granularity)) == error
